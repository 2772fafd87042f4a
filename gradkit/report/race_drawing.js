// What the race shows: a surface and the ways down it, and the spectrum that explains them.

const SIZE = 440, LEFT = 44, BOTTOM = 40, TOP = 8, RIGHT = 10, SPECTRUM_HEIGHT = 190;
const MARKS = { // half a size of 5 around the origin
  gd: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0", momentum: "M-4 -4h8v8h-8z",
  nesterov: "M0 -5.5L5 4h-10z", rmsprop: "M0 -6L6 0L0 6L-6 0z", adam: "M0 5.5L5 -4h-10z",
  newton: "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
  damped: "M-5.5 -3h11v6h-11z", saddle_free: "M-3 -5.5h6v11h-6z",
};

const rounded = (x) => 10 ** (Math.round(20 * Math.log10(x)) / 20); // a twentieth of a decade
const byId = (name) => document.getElementById(`race-${name}`);
const data = JSON.parse(byId("data").textContent);
const surfaces = data.slice ? { slice: ofRun(data), ...CLASSICS } : CLASSICS;
const quiet = window.matchMedia("(prefers-reduced-motion: reduce)");
const race = { surface: null, start: [0, 0], options: {}, walkers: [], running: false, timer: 0 };

/** The slice of the run's loss as a surface. */
function ofRun({ slice, where }) {
  const { a, b, eigenvalues } = slice, last = a.length - 1, at = splined(slice);
  return {
    title: `This run: its loss ${where}`, extent: [a[0], a[last], b[0], b[last]],
    start: fairStart(at, b[last]), minima: [], rate: rounded(0.9 / eigenvalues[0]),
    axes: eigenvalues.map((l, i) => `along eigenvector ${i + 1} (λ = ${text(l)})`),
    bounded: true, at,
  };
}

/** A first start: a point far out, from which Newton's method finds its way too. */
function fairStart(at, reach) {
  for (let share = 0.6; share > 0.1; share -= 0.05) {
    for (let k = 0; k < 12; k++) {
      const angle = Math.PI * (0.7 + k / 6); // up and to the left first
      const spot = [share * reach * Math.cos(angle), share * reach * Math.sin(angle)];
      const { f, h } = at(...spot);
      if (eigen(h).values[1] > 0 && run({ at }, "newton", spot, {}, 20).f < f) return spot;
    }
  }
  return [-0.1 * reach, 0.1 * reach];
}

/** A number as the page writes it. */
function text(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size === 0 || (size >= 1e-3 && size < 1e5)) {
    return String(Number(x.toPrecision(digits))).replace("-", "−");
  }
  const [front, power] = x.toExponential(digits - 1).split("e");
  const raise = (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)];
  const raised = [...String(Number(power))].map(raise);
  return `${String(Number(front)).replace("-", "−")}×10${raised.join("")}`;
}

const place = (at) => `(${text(at[0])}, ${text(at[1])})`;

/** A new element under a parent; attributes, and `text` for its content. */
function add(parent, tag, attributes = {}) {
  const space = parent.namespaceURI;
  const child = document.createElementNS(tag === "svg" ? "http://www.w3.org/2000/svg" : space, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") child.textContent = value;
    else child.setAttribute(name, value);
  }
  return parent.appendChild(child);
}

// The plane

const [WIDE, HIGH] = [SIZE - LEFT - RIGHT, SIZE - TOP - BOTTOM];
const across = (x, [x0, x1]) => LEFT + WIDE * (x - x0) / (x1 - x0);
const up = (y, [, , y0, y1]) => TOP + HIGH * (y1 - y) / (y1 - y0);
const inView = (pixel) => Math.max(-1e4, Math.min(1e4, pixel)).toFixed(1);

/** Round numbers from low to high, about as many as asked for. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step); k <= high / step + 1e-9; k++) found.push(k * step);
  return found;
}

/** Segments of the level line of a grid, as the path of an SVG (marching squares). */
function levelLine(grid, level) {
  const n = grid.length - 1, parts = [];
  const cross = (u, v) => (level - u) / (v - u);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const [p, q, r, s] = [grid[i][j], grid[i + 1][j], grid[i + 1][j + 1], grid[i][j + 1]];
      const hits = [];
      if (p < level !== q < level) hits.push([i + cross(p, q), j]);
      if (q < level !== r < level) hits.push([i + 1, j + cross(q, r)]);
      if (s < level !== r < level) hits.push([i + cross(s, r), j + 1]);
      if (p < level !== s < level) hits.push([i, j + cross(p, s)]);
      for (let k = 0; k + 1 < hits.length; k += 2) {
        const [from, to] = [hits[k], hits[k + 1]].map(([a, b]) =>
          `${(LEFT + WIDE * a / n).toFixed(1)} ${(TOP + HIGH * (1 - b / n)).toFixed(1)}`);
        parts.push(`M${from}L${to}`);
      }
    }
  }
  return parts.join("");
}

/** Draws axes, contours at levels that are even in the logarithm of f − min f, and the minima. */
function drawPlane() {
  const { surface } = race, extent = surface.extent, [x0, x1, y0, y1] = extent, n = 100;
  const part = (low, high, i) => Math.min(high, low + (high - low) * i / n);
  const grid = Array.from({ length: n + 1 }, (_, i) =>
    Array.from({ length: n + 1 }, (_, j) => surface.at(part(x0, x1, i), part(y0, y1, j)).f));
  const values = grid.flat(), low = Math.min(...values), high = Math.max(...values);
  surface.tol = 1e-7 * (high - low) / (x1 - x0);
  byId("contours").replaceChildren();
  for (let k = 0; k < 18; k++) {
    const path = levelLine(grid, low + (high - low) * 10 ** (-3.4 * (1 - k / 17.5)));
    add(byId("contours"), "path", { d: path, "stroke-opacity": (0.35 + 0.03 * k).toFixed(2) });
  }
  const axes = byId("axes"), foot = SIZE - BOTTOM;
  axes.replaceChildren();
  for (const x of ticks(x0, x1, 5)) {
    add(axes, "path", { d: `M${across(x, extent)} ${foot}v4` });
    const spot = { x: across(x, extent), y: foot + 16, "text-anchor": "middle" };
    add(axes, "text", { ...spot, text: text(x) });
  }
  for (const y of ticks(y0, y1, 5)) {
    add(axes, "path", { d: `M${LEFT} ${up(y, extent)}h-4` });
    add(axes, "text", { x: LEFT - 7, y: up(y, extent) + 4, "text-anchor": "end", text: text(y) });
  }
  const [xName, yName] = surface.axes || ["x", "y"];
  add(axes, "text", { x: LEFT + WIDE / 2, y: SIZE - 5, "text-anchor": "middle", text: xName });
  const turned = `translate(11 ${TOP + HIGH / 2}) rotate(-90)`;
  add(axes, "text", { transform: turned, "text-anchor": "middle", text: yName });
  byId("minima").replaceChildren();
  for (const [x, y] of surface.minima.length ? surface.minima : [[0, 0]]) {
    const [px, py] = [across(x, extent), up(y, extent)];
    add(byId("minima"), "path", { d: `M${px - 6} ${py}h12M${px} ${py - 6}v12` });
  }
}

/** Draws the ways so far and the start, and fills the table. */
function drawRace() {
  const extent = race.surface.extent;
  const spot = (at) => `${inView(across(at[0], extent))} ${inView(up(at[1], extent))}`;
  byId("start").setAttribute("transform", `translate(${spot(race.start)})`);
  for (const one of race.walkers) {
    const shown = one.row.check.checked, visible = shown ? "visible" : "hidden";
    one.line.setAttribute("points", one.way.map(spot).join(" "));
    one.line.setAttribute("visibility", visible);
    const lost = one.at.some((x) => !Number.isFinite(x));
    one.mark.setAttribute("visibility", lost ? "hidden" : visible);
    if (!lost) one.mark.setAttribute("transform", `translate(${spot(one.at)})`);
    const { f, g } = one.here;
    const words = [one.status, String(one.steps), text(f, 4), text(Math.hypot(...g))];
    one.row.cells.forEach((cell, i) => { cell.textContent = words[i]; });
  }
}

// The spectrum

/** The eigenvalues that decide, whose they are, and those where the race starts. */
function curvatures() {
  const { surface, start } = race, atStart = eigen(surface.at(...start).h).values;
  if (surface.bounded) {
    return { atStart, at: data.slice.eigenvalues, all: data.eigenvalues, whose: "of this run" };
  }
  const far = ([x, y]) => Math.hypot(x - start[0], y - start[1]);
  const nearest = [...surface.minima].sort((p, q) => far(p) - far(q))[0];
  const at = eigen(surface.at(...nearest).h).values;
  const which = surface.minima.length > 1 ? ` ${place(nearest)}` : "";
  return { atStart, at, all: at, whose: `at the minimum${which}` };
}

/** The largest eigenvalue at which each method is stable on a quadratic. */
function limits({ rate, momentum }) {
  return {
    gd: ["2/η", 2 / rate], momentum: ["2(1 + μ)/η", 2 * (1 + momentum) / rate],
    nesterov: ["2(1 + μ)/((1 + 2μ)η)", 2 * (1 + momentum) / ((1 + 2 * momentum) * rate)],
  };
}

function drawSpectrum() {
  const found = curvatures(), bounds = limits(race.options);
  const every = [...found.all, ...found.atStart];
  const most = Math.max(2.4 * Math.max(...found.all), 1.1 * Math.max(...every.map(Math.abs)));
  const span = [Math.min(1.15 * Math.min(...every), -0.06 * most), most];
  const foot = SPECTRUM_HEIGHT - BOTTOM, svg = byId("spectrum");
  const x = (value) => across(Math.max(span[0], Math.min(span[1], value)), span);
  svg.replaceChildren();
  const edge = x(bounds.gd[1]);
  const shade = { class: "beyond", x: edge, y: TOP, width: SIZE - RIGHT - edge, height: foot - TOP };
  if (bounds.gd[1] < span[1]) add(svg, "rect", shade);
  if (race.surface.bounded && data.density.length) {
    const tallest = Math.max(...data.density.map(([, height]) => height));
    const points = data.density.map(([value, height]) => {
      const tall = Math.max(0, 1 + Math.log10(height / tallest) / 5);
      return `${x(value).toFixed(1)} ${(foot - tall * (foot - TOP - 62)).toFixed(1)}`;
    });
    const outline = `M${x(span[0])} ${foot}L${points.join("L")}V${foot}z`;
    add(svg, "path", { class: "density", d: outline });
  }
  add(svg, "path", { class: "axis", d: `M${LEFT} ${foot}H${SIZE - RIGHT}` });
  for (const value of ticks(...span, 5)) {
    add(svg, "path", { class: "axis", d: `M${x(value)} ${foot}v4` });
    add(svg, "text", { x: x(value), y: foot + 16, "text-anchor": "middle", text: text(value) });
  }
  const middle = { x: LEFT + WIDE / 2, y: SPECTRUM_HEIGHT - 5, "text-anchor": "middle" };
  add(svg, "text", { ...middle, text: "eigenvalue λ of the Hessian" });
  for (const [method, [, bound]] of Object.entries(bounds)) {
    const line = { class: `line m-${method}`, d: `M${x(bound)} ${TOP}V${foot}` };
    if (bound < span[1]) add(svg, "path", line);
  }
  for (const value of found.all) {
    add(svg, "path", { class: "eigenvalue", d: `M${x(value)} ${foot}v-40` });
  }
  for (const value of found.atStart) {
    const mark = { class: "at-start", transform: `translate(${x(value)} ${TOP + 26})` };
    add(svg, "path", { ...mark, d: MARKS.gd });
  }
  const list = byId("limits");
  list.replaceChildren();
  for (const [method, [formula, bound]] of Object.entries(bounds)) {
    const item = add(list, "li");
    swatch(item, method, "M1 6h24");
    const off = bound < span[1] ? "" : ", beyond this axis";
    add(item, "span", { text: `${formula} = ${text(bound)}: ${METHODS[method].title}${off}` });
  }
  byId("marks").textContent = `Bars: eigenvalues ${found.whose}${race.surface.bounded ? "; area: its "
    + "density, logarithmic" : ""}. Circles: at the start.`;
  byId("says").textContent = sentence(found, bounds);
}

/** What the spectrum says of the race. */
function sentence({ at: [most, least], atStart, whose }, bounds) {
  const { rate } = race.options, limit = bounds.gd[1];
  const factor = (name, l) => { // no break inside of the formula
    const shrunk = Math.abs(1 - rate * l), digits = Math.abs(1 - shrunk) < 0.05 ? 5 : 3;
    return `|1\u00a0−\u00a0η${name}|\u2060\u00a0=\u00a0${text(shrunk, digits)}`;
  };
  const along = race.surface.bounded ? "eigenvector 1" : "the steepest direction";
  const words = [`λ₁ = ${text(most)} ${whose} is`];
  if (most > limit) {
    words.push(`above 2/\u2060η = ${text(limit)}: gradient descent oscillates with growing amplitude`,
      `along ${along}, ${factor("λ₁", most)} times a step.`);
    const stable = ["momentum", "nesterov"].filter((method) => most < bounds[method][1]);
    const names = stable.map((method) => METHODS[method].title).join(" and ");
    if (names) words.push(`${names} still settle${stable.length > 1 ? "" : "s"}.`);
  } else {
    const way = rate * most > 1 ? "oscillates and settles" : "settles without overshooting";
    words.push(`below 2/\u2060η = ${text(limit)}: gradient descent ${way} along ${along},`,
      `${factor("λ₁", most)} times a step`);
    const slow = `; across it, λ₂ = ${text(least)}, ${factor("λ₂", least)}`;
    words.push(`${words.pop()}${least > 0 ? slow : ""}.`);
    if (most > bounds.nesterov[1]) words.push("It is above the limit of Nesterov, which diverges.");
  }
  if (atStart[1] < 0) {
    words.push(`At the start λ₂ = ${text(atStart[1])} is negative: along it descent moves away,`,
      "Newton's step toward a saddle or a maximum, and the saddle-free step away from it.");
  }
  return words.join(" ");
}

/** A line and a mark of a method, for tables and lists. */
function swatch(parent, method, line, mark) {
  const box = { class: `swatch m-${method}`, viewBox: "0 0 26 12", "aria-hidden": "true" };
  const svg = add(parent, "svg", box);
  add(svg, "path", { class: "line", d: line });
  if (mark) add(svg, "path", { class: "end", d: mark, transform: "translate(13 6)" });
}
