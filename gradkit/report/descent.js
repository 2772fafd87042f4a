"use strict";
// Surfaces z = f(x, y) with gradient and Hessian, and the methods that walk down them: pure
// functions, which the page draws and the tests hold against gradkit's own optimizers.

/** Value, gradient [gx, gy] and Hessian [hxx, hxy, hyy] of the surfaces in closed form. */
const CLASSICS = {
  ravine: {
    title: "Ravine: ½ (x² + 25 y²)",
    extent: [-3, 3, -3, 3], start: [-2.6, 1.1], minima: [[0, 0]], rate: 0.05,
    at: (x, y) => ({ f: (x * x + 25 * y * y) / 2, g: [x, 25 * y], h: [1, 0, 25] }),
  },
  rosenbrock: {
    title: "Rosenbrock: (1 − x)² + 100 (y − x²)²",
    extent: [-2, 2, -1.2, 2.8], start: [-1.2, 1], minima: [[1, 1]], rate: 0.001,
    at: (x, y) => {
      const r = y - x * x;
      return {
        f: (1 - x) * (1 - x) + 100 * r * r,
        g: [-2 * (1 - x) - 400 * x * r, 200 * r],
        h: [2 - 400 * r + 800 * x * x, -400 * x, 200],
      };
    },
  },
  saddle: {
    title: "Saddle between two minima: ½ x² − ½ y² + ¼ y⁴",
    extent: [-2, 2, -2, 2], start: [-1.5, 0.1], minima: [[0, -1], [0, 1]], rate: 0.1,
    at: (x, y) => ({
      f: x * x / 2 - y * y / 2 + y * y * y * y / 4, g: [x, y * y * y - y], h: [1, 0, 3 * y * y - 1],
    }),
  },
  himmelblau: {
    title: "Himmelblau: (x² + y − 11)² + (x + y² − 7)²",
    extent: [-5.5, 5.5, -5.5, 5.5], start: [-0.5, 4.5], rate: 0.01,
    minima: [[3, 2], [-2.805118086952745, 3.131312518250573],
      [-3.779310253377747, -3.283185991286170], [3.584428340330492, -1.848126526964404]],
    at: (x, y) => {
      const p = x * x + y - 11, q = x + y * y - 7;
      return {
        f: p * p + q * q,
        g: [4 * x * p + 2 * q, 2 * p + 4 * y * q],
        h: [4 * p + 8 * x * x + 2, 4 * (x + y), 2 + 4 * q + 8 * y * y],
      };
    },
  },
};

/** The solution of a linear system, by elimination with pivots; A and the rows of B are consumed. */
function solve(A, B) {
  const n = A.length;
  for (let k = 0; k < n; k++) {
    let p = k;
    for (let i = k + 1; i < n; i++) if (Math.abs(A[i][k]) > Math.abs(A[p][k])) p = i;
    [A[k], A[p], B[k], B[p]] = [A[p], A[k], B[p], B[k]];
    for (let i = k + 1; i < n; i++) {
      const factor = A[i][k] / A[k][k];
      if (factor === 0) continue;
      for (let j = k; j < n; j++) A[i][j] -= factor * A[k][j];
      for (let j = 0; j < B[i].length; j++) B[i][j] -= factor * B[k][j];
    }
  }
  for (let k = n - 1; k >= 0; k--) {
    for (let j = 0; j < B[k].length; j++) {
      for (let i = k + 1; i < n; i++) B[k][j] -= A[k][i] * B[i][j];
      B[k][j] /= A[k][k];
    }
  }
  return B;
}

/** Second derivatives, down the columns of Y, of the cubic splines through them (not-a-knot). */
function moments(Y, step) {
  const n = Y.length, A = Y.map(() => new Array(n).fill(0));
  const B = Y.map((row) => row.map(() => 0));
  A[0].splice(0, 3, 1, -2, 1);
  A[n - 1].splice(n - 3, 3, 1, -2, 1);
  for (let i = 1; i < n - 1; i++) {
    A[i].splice(i - 1, 3, 1, 4, 1);
    B[i] = Y[i].map((y, j) => 6 * (Y[i - 1][j] - 2 * y + Y[i + 1][j]) / (step * step));
  }
  return solve(A, B);
}

const transposed = (Y) => Y[0].map((_, j) => Y.map((row) => row[j]));

/** What values and moments at both ends of an interval weigh at t in it, for s, s′ and s″. */
function weights(t, step) {
  const u = 1 - t, c = step * step / 6;
  return [
    [u, t, c * (u * u * u - u), c * (t * t * t - t)],
    [-1 / step, 1 / step, step / 6 * (1 - 3 * u * u), step / 6 * (3 * t * t - 1)],
    [0, 0, u, t],
  ];
}

/** The C² spline through a grid of values, loss[i][j] at (a[i], b[j]); NaN outside of it. */
function splined({ a, b, loss }) {
  const n = a.length, da = (a[n - 1] - a[0]) / (n - 1), db = (b[n - 1] - b[0]) / (n - 1);
  const across = transposed(moments(transposed(loss), db));
  const tables = [[loss, across], [moments(loss, da), moments(across, da)]];
  const lost = { f: NaN, g: [NaN, NaN], h: [NaN, NaN, NaN] };
  return (x, y) => {
    if (!(x >= a[0] && x <= a[n - 1] && y >= b[0] && y <= b[n - 1])) return lost;
    const i = Math.min(n - 2, Math.floor((x - a[0]) / da));
    const j = Math.min(n - 2, Math.floor((y - b[0]) / db));
    const P = weights((x - a[0]) / da - i, da), Q = weights((y - b[0]) / db - j, db);
    const sum = (p, q) => {
      let total = 0;
      for (let k = 0; k < 4; k++) {
        for (let l = 0; l < 4; l++) {
          total += P[p][k] * Q[q][l] * tables[k >> 1][l >> 1][i + (k & 1)][j + (l & 1)];
        }
      }
      return total;
    };
    return { f: sum(0, 0), g: [sum(1, 0), sum(0, 1)], h: [sum(2, 0), sum(1, 1), sum(0, 2)] };
  };
}

/** Eigenvalues of a symmetric 2 × 2 matrix, the larger first, with their unit vectors. */
function eigen([p, q, r]) {
  const mean = (p + r) / 2, d = (p - r) / 2, radius = Math.hypot(d, q);
  const angle = Math.atan2(q, d) / 2, c = Math.cos(angle), s = Math.sin(angle);
  return { values: [mean + radius, mean - radius], vectors: [[c, s], [-s, c]] };
}

/** Q φ(λ, c) with c = Qᵀ g: what a function of the eigenvalues makes of a gradient. */
function spectral(h, g, phi) {
  const { values, vectors } = eigen(h), size = Math.max(...values.map(Math.abs));
  const d = values.map((l, i) => phi(l, vectors[i][0] * g[0] + vectors[i][1] * g[1], size));
  return [0, 1].map((k) => vectors[0][k] * d[0] + vectors[1][k] * d[1]);
}

const RESOLVED = 2 * 2 ** -52; // of the largest |λ|: below it, curvature is rounding
const newton = ([p, q, r], g, damping) => spectral([p + damping, q, r + damping], g,
  (l, c, size) => (Math.abs(l) <= RESOLVED * size ? 0 : c / l));

/**
 * The methods; `step` returns d in θ ← θ − d, of its memory, the surface at θ, the options and θ.
 * Newton's take the whole step, η = 1.
 */
const METHODS = {
  gd: {
    title: "Gradient descent",
    step: (s, { g }, o) => g.map((x) => o.rate * x),
  },
  momentum: {
    title: "Momentum",
    step: (s, { g }, o) => {
      s.v = g.map((x, i) => x + o.momentum * (s.v ? s.v[i] : 0)); // v ← μ v + g
      return s.v.map((v) => o.rate * v);
    },
  },
  nesterov: {
    title: "Nesterov",
    step: (s, { g }, o) => {
      s.v = g.map((x, i) => x + o.momentum * (s.v ? s.v[i] : 0));
      return g.map((x, i) => o.rate * (x + o.momentum * s.v[i])); // g + μ v
    },
  },
  rmsprop: {
    title: "RMSProp", // ρ = 0.9, ε = 1e-8 inside the root
    step: (s, { g }, o) => {
      s.r = g.map((x, i) => 0.9 * (s.r ? s.r[i] : 0) + 0.1 * x * x);
      return g.map((x, i) => o.rate * x / Math.sqrt(s.r[i] + 1e-8));
    },
  },
  adam: {
    title: "Adam", // β₁ = 0.9, β₂ = 0.999, ε = 1e-8 outside of the root
    step: (s, { g }, o) => {
      s.t = (s.t || 0) + 1;
      s.m = g.map((x, i) => 0.9 * (s.m ? s.m[i] : 0) + 0.1 * x);
      s.r = g.map((x, i) => 0.999 * (s.r ? s.r[i] : 0) + 0.001 * x * x);
      const c1 = 1 - 0.9 ** s.t, c2 = 1 - 0.999 ** s.t;
      return g.map((x, i) => o.rate * s.m[i] / c1 / (Math.sqrt(s.r[i] / c2) + 1e-8));
    },
  },
  newton: {
    title: "Newton", step: (s, { g, h }) => newton(h, g, 0),
  },
  damped: {
    title: "Damped Newton", step: (s, { g, h }, o) => newton(h, g, o.damping),
  },
  saddle_free: {
    title: "Saddle-free Newton",
    step: (s, { g, h }, o, at) => {
      const reach = 100 * Math.max(1, Math.hypot(...at)); // no step along an eigenvector is longer
      return spectral(h, g, (l, c) =>
        (c === 0 ? 0 : Math.sign(c) * Math.min(reach, Math.abs(c) / (Math.abs(l) + o.damping))));
    },
  },
};

/** A walker at its start: where it is, what the surface is there, and the method's memory. */
const walker = (surface, method, start) =>
  ({ method, at: [...start], here: surface.at(...start), memory: {}, steps: 0 });

/** Takes a step, in place. */
function walk(surface, one, options) {
  const d = METHODS[one.method].step(one.memory, one.here, options, one.at);
  one.at = one.at.map((x, i) => x - d[i]);
  one.here = surface.at(...one.at);
  one.steps += 1;
}

/** Where a method is after so many steps. Options: rate η, momentum μ, damping α. */
function run(surface, method, start, options, steps) {
  const one = walker(surface, method, start);
  for (let i = 0; i < steps; i++) walk(surface, one, options);
  return { at: one.at, ...one.here };
}
