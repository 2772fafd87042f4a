"""Random chains of gradkit's members against the same chains of optax's, update by update.

Each seed draws a chain as two texts, one that says `gk.` and one that says `optax.`, parameters and
gradients, and compares what they make of them. A seed that fails prints both texts and the data, to
be pasted into a Python prompt. The members are read from the two public indices: a name that both
have is drawn as soon as it is public, with the arguments that its two signatures share.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import eval_shape

import gradkit as gk

GROUP = 10
QUICK_GROUPS, GROUPS = 10, 200
STEPS = 4
DEPTH = 2  # of chains and wrappers in each other
NAMES = {"gk": gk, "optax": optax, "jax": jax, "jnp": jnp, "np": np}
NAMES |= {"inf": np.inf, "nan": np.nan}
QUICK_TO_COMPILE = {"xla_cpu_parallel_codegen_split_count": 1}
RTOL = {"float32": 2e-6, "float64": 1e-12, "bfloat16": 2**-7, "float16": 2**-9}
TINY = {"float32": 1e-37, "float64": 1e-300, "bfloat16": 1e-37, "float16": 2**-23}


def shared_names():
    """The names that gradkit and optax give to a factory of transformations."""
    for name in gk.__all__:
        returned = getattr(getattr(optax, name, None), "__annotations__", {}).get("return")
        ours = gk._INDEX[name].startswith(("gradkit.transforms.", "gradkit.optimizers."))
        if ours and "GradientTransformation" in str(returned):
            yield name


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────

NOT_DRAWN = {
    "add_noise": "Differs: in `key` and in the numbers drawn.",
    "lbfgs": "Differs: in the line search and in the first step.",
    "lookahead": "Differs: optax's parameters are a pair of trees; test_guarding.py has it.",
    "scale_by_lbfgs": "Differs: in the first step, and in that pairs are tested.",
}
COUNTERPARTS = {  # gradkit's name -> optax's, where it is another
    "accumulate": "MultiSteps",
    "heavy_ball": "trace",
    "reduce_on_plateau": "contrib.reduce_on_plateau",
}
OTHER_ARGUMENTS = {("adadelta", "mask"): "weight_decay_mask"}
FOREIGN = [  # in both chains
    "optax.adafactor(0.1)",
    "optax.adam(0.1)",
    "optax.add_decayed_weights(0.1)",
    "optax.apply_every(2)",
    "optax.apply_if_finite(optax.sgd(0.1), 1)",
    "optax.clip(0.5)",
    "optax.clip_by_block_rms(1.0)",
    "optax.ema(0.9)",
    "optax.flatten(optax.scale_by_rms(eps=1e-3))",
    "optax.identity()",
    "optax.inject_hyperparams(optax.adam)(SCHEDULE)",
    "optax.inject_hyperparams(optax.sgd)(0.1, 0.9)",
    "optax.keep_params_nonnegative()",
    "optax.lamb(0.1)",
    "optax.masked(optax.scale(2.0), MASK)",
    "optax.normalize_by_update_norm()",
    "optax.scale(-0.1)",
    "optax.scale(0.5)",
    "optax.scale_by_adam()",
    "optax.scale_by_amsgrad()",
    "optax.scale_by_belief(eps=1e-8, eps_root=1e-8)",
    "optax.scale_by_learning_rate(SCHEDULE)",
    "optax.scale_by_param_block_rms()",
    "optax.scale_by_schedule(SCHEDULE)",
    "optax.scale_by_trust_ratio(eps=1e-3)",
    "optax.scale_by_yogi()",
    "optax.sgd(0.1, 0.9)",
    "optax.stateless(lambda u, p: jax.tree.map(lambda x: 2 * x, u))",
    "optax.trace(0.9)",
    "optax.zero_nans()",
]
SCHEDULES = [
    "optax.linear_schedule(0.1, 0.01, 3)",
    "optax.exponential_decay(0.1, 2, 0.5)",
    "optax.piecewise_constant_schedule(0.5, {2: 0.1})",
    "optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)",
    "(lambda step: 0.1 / (step + 1))",
]
NUMBERS = {  # hyperparameters that optax takes as numbers only
    "b1": ["0.9", "0.8", "0.0"],
    "b2": ["0.999", "0.99", "0.5"],
    "clipping": ["0.1", "0.01"],
    "decay": ["0.9", "0.99", "0.5"],
    "eps": ["1e-3", "1e-6"],
    "eps_root": ["0.0", "1e-6"],
    "factor": ["0.5", "0.1"],
    "initial_accumulator_value": ["0.1", "1.0", "0.0"],
    "initial_scale": ["0.0", "1.0"],
    "max_delta": ["0.5", "100.0"],
    "max_norm": ["1.0", "0.1", "100.0"],
    "momentum": ["None", "0.9", "0.5"],
    "rho": ["0.9", "0.5"],
}
ARGUMENTS = NUMBERS | {
    "accumulation_size": ["1", "2"],
    "accumulator_dtype": ["None", "'bfloat16'", "'float32'"],
    "atol": ["0.0", "0.1"],
    "axis": ["None"],
    "bias_correction": ["False", "True"],
    "centered": ["False", "True"],
    "cooldown": ["0", "1"],
    "debias": ["True", "False"],
    "eps_in_sqrt": ["True", "False"],
    "every": ["1", "2", "3"],
    "flip_sign": ["True", "False"],
    "learning_rate": ["0.1", "1e-3", "1", *SCHEDULES],
    "max_consecutive_errors": ["0", "1", "5"],
    "min_scale": ["0.0", "0.2"],
    "mu_dtype": ["None", "'bfloat16'", "'float32'"],
    "nesterov": ["False", "True"],
    "patience": ["1", "2"],
    "rtol": ["1e-4", "0.5"],
    "weight_decay": ["0.1", "1e-4", "0.0", *SCHEDULES],
}
BUILT = {"inner", "mask", "param_labels", "transforms"}  # arguments that are drawn for the tree


class Pair(NamedTuple):
    """The texts of two transformations that are the same."""

    ours: str
    theirs: str


class Tree(NamedTuple):
    """A tree of parameters as text, L0, L1 ... its leaves; with a prefix of it for masks."""

    text: str
    shapes: tuple
    prefix: str

    def filled(self, leaves, text=None):
        return re.sub(r"L(\d)", lambda match: str(leaves[int(match[1])]), text or self.text)


TREES = [
    Tree("{'a': L0, 'b': {'c': L1}}", ((3,), ()), "{'a': L0, 'b': L1}"),
    Tree("{'b': L0, 'w': L1}", ((3,), (2, 3)), "L0"),
    Tree("(L0, None, {'s': L1})", ((4,), ()), "(L0, None, L1)"),
    Tree("[L0, (L1, L2)]", ((2,), (), (1,)), "[L0, L1]"),
    Tree("L0", ((5,),), "L0"),
    Tree("{'f': L0, 'w': L1}", (float, (2, 2)), "L0"),
    Tree("{'e': L0, 'w': L1}", ((0,), (3,)), "L0"),
]


def counterpart(name):
    path = COUNTERPARTS.get(name, name)
    found = optax
    for part in path.split("."):
        found = getattr(found, part)
    return path, found


@functools.cache
def arguments_of(name):
    """The arguments that both signatures have: name -> optax's name, and whether it must be given.

    It must where there is no default or another one.
    """
    if name == "accumulate":
        return {p: (p, True) for p in ("inner", "every")}
    ours = inspect.signature(getattr(gk, name)).parameters
    theirs = inspect.signature(counterpart(name)[1]).parameters
    renamed = {p: OTHER_ARGUMENTS.get((name, p), p) for p in ours}
    found = {}
    for mine, other in renamed.items():
        if other in theirs:
            default = theirs[other].default
            needed = default is inspect.Parameter.empty or default != ours[mine].default
            found[mine] = other, needed
    return found


DRAWN = [name for name in shared_names() if name not in {*NOT_DRAWN, "chain"}] + list(COUNTERPARTS)


class Draw:
    """Draws members for one tree of parameters."""

    def __init__(self, rng, tree):
        self.rng, self.tree = rng, tree
        self.may_pass = False  # whether a whole optimizer follows, for all leaves

    def one_of(self, options):
        return options[self.rng.integers(len(options))]

    def often(self, probability):
        return self.rng.random() < probability

    def mask(self, whole=False):
        """A function, a prefix of the tree, or a whole one, as optax needs around other masks."""
        kind = self.rng.choice([0, 2]) if whole else self.rng.integers(4)
        if kind == 0:
            return "lambda p: jax.tree.map(lambda x: jnp.ndim(x) > 0, p)"
        text = self.tree.prefix if kind == 1 else self.tree.text
        return self.tree.filled([self.often(0.5) for _ in self.tree.shapes], text)

    def chain(self, size, depth):
        outer = "optax" if self.often(0.1) else "gk"
        ends = size > 1 and outer == "gk" and self.often(0.2)
        self.may_pass, before = ends and depth == DEPTH, self.may_pass
        members = [self.member(depth) for _ in range(size)]
        self.may_pass = before
        if ends:
            members[-2:] = self.one_of([[members[-2], self.optimizer()], [*self.complementary()]])
        ours, theirs = (", ".join(texts) for texts in zip(*members, strict=True))
        return Pair(f"{outer}.chain({ours})", f"optax.chain({theirs})")

    def complementary(self):
        mask = [self.often(0.5) for _ in self.tree.shapes]
        for flags in (mask, [not flag for flag in mask]):
            (ours, theirs), text = self.optimizer(), self.tree.filled(flags)
            yield Pair(f"gk.masked({ours}, {text})", f"optax.masked({theirs}, {text})")

    def optimizer(self):
        return self.shared(self.one_of(["sgd", "adam", "adamw", "rmsprop", "adagrad"]), 0)

    def member(self, depth):
        if depth and self.often(0.1):
            return self.chain(self.rng.integers(1, 4), depth - 1)
        if self.often(0.25):
            text = self.one_of(FOREIGN).replace("SCHEDULE", self.one_of(SCHEDULES))
            return Pair(*2 * (text.replace("MASK", self.mask()),))
        holding = {"inner", "transforms"}
        names = [name for name in DRAWN if depth or not holding & {*arguments_of(name)}]
        name = self.one_of(names)
        if name == "accumulate" and self.often(0.5):  # it takes as long to compile as five others
            name = "sgd"
        return self.shared(name, depth)

    def shared(self, name, depth):
        ours, theirs = {}, {}
        for mine, (other, needed) in arguments_of(name).items():
            if needed or mine == "learning_rate" or self.often(0.5):
                whole = name == "masked"
                ours[mine], theirs[other] = self.argument(mine, depth, whole)
        scheduled = [p for p in ours if p in NUMBERS and p not in ("initial_scale", "momentum")]
        scheduled = [p for p in scheduled if not p.startswith(("initial", "factor"))]
        factory = f"optax.{counterpart(name)[0]}"
        if scheduled and "mask" not in ours and self.often(0.15):
            p = self.one_of(scheduled)
            first, last = (float(self.one_of(NUMBERS[p])) for _ in range(2))
            ours[p] = theirs[p] = f"optax.linear_schedule({first}, {last}, 3)"
            factory = f"optax.inject_hyperparams({factory})"
        given = [", ".join(f"{k}={v}" for k, v in texts.items()) for texts in (ours, theirs)]
        if name == "masked" and not (self.may_pass and depth == DEPTH):
            given[0] += ", unselected='keep'"
        if name == "accumulate":
            every = f"{theirs['inner']}, {theirs['every']}, accumulator_dtype=None"
            steps = f"optax.MultiSteps({every}).gradient_transformation()"
            return Pair(
                f"gk.accumulate({given[0]})", f"optax.GradientTransformationExtraArgs(*{steps})"
            )
        return Pair(f"gk.{name}({given[0]})", f"{factory}({given[1]})")

    def argument(self, name, depth, whole):
        if name == "inner":
            size = self.rng.integers(1, 3)
            return self.chain(size, depth - 1) if size > 1 else self.member(depth - 1)
        if name == "transforms":
            members = [(label, self.member(depth - 1)) for label in "xy"]
            sides = ([f"'{label}': {pair[i]}" for label, pair in members] for i in range(2))
            return ["{" + ", ".join(side) + "}" for side in sides]
        if name == "param_labels":
            return 2 * (self.tree.filled([f"'{self.one_of('xy')}'" for _ in self.tree.shapes]),)
        return 2 * (self.mask(whole) if name == "mask" else self.one_of(ARGUMENTS[name]),)


# ── parameters and gradients ─────────────────────────────────────────────────────────────────────

NEEDS_PARAMS = (
    "adadelta|adafactor|adamw|adaptive_grad_clip|decayed_weights|keep_params|lamb|param_block|"
    "trust_ratio"
)
# Differs: "the variance r − m² is kept from falling below zero by rounding". It is zero but for
# rounding where averages are of one gradient.
VARIANCES_VANISH = r"(stddev|centered=True)[^)]*(bias_correction=True|decay=optax)"
# optax's sum of squares forgets a NaN: later updates are 0. Its MultiSteps never does.
NANS_DIFFER = "gk.adagrad|gk.scale_by_rss|gk.accumulate"
UNDERFLOWS = "adagrad|scale_by_rss|trust_ratio|lamb|block_rms|normalize_by"  # in float16
# "A norm that is not finite makes the updates NaN"; optax zeroes what is finite beside an infinity.
INFINITIES_DIFFER = "gk.clip_by_global_norm|gk.adaptive_grad_clip"
PRECISIONS = ["float32"] * 5 + ["bfloat16"] * 2 + ["float16"] * 2 + ["mixed"]
IN_X64 = ["float32", "float64"]


class Case(NamedTuple):
    """Two chains and their data, leaf by leaf."""

    tree: Tree
    chains: Pair
    dtypes: tuple
    x64: bool
    python_floats: bool
    params: list  # of leaves, for each step
    gradients: list
    values: list
    with_params: bool

    def given(self, wide=False, noise=None, floats=True):
        """Gradient, parameters and value of each step, as they are or in float32 at least.

        With a noise each number is a rounding off.
        """
        rng = np.random.default_rng(noise)
        unit = rounding(self)

        def whole(leaves):
            found = {}
            for i, (x, d, shape) in enumerate(
                zip(leaves, self.dtypes, self.tree.shapes, strict=True)
            ):
                x = x.astype(d)
                if wide:
                    x = x.astype(np.promote_types(d, np.float32))
                if noise is not None:
                    x = (x * (1 + unit * rng.choice([-1, 1], x.shape))).astype(x.dtype)
                bare = shape is float and self.python_floats and floats and not wide
                found[f"L{i}"] = float(x) if bare else jnp.asarray(x)
            return eval(self.tree.text, found)

        return [
            (whole(g), whole(p), jnp.float32(v))
            for g, p, v in zip(self.gradients, self.params, self.values, strict=True)
        ]

    def code(self):
        """The case as it can be pasted."""

        def tree(leaves):
            def leaf(x, dtype, shape):
                if shape is float and self.python_floats:
                    return repr(float(x.astype(dtype)))
                text = str(x.astype(dtype).astype(np.float64).tolist())
                return f"jnp.array({text}, jnp.{np.dtype(dtype).name})"

            return self.tree.filled(list(map(leaf, leaves, self.dtypes, self.tree.shapes)))

        steps = "\n".join(
            f"    ({tree(g)}, {tree(p)}, {v}),"
            for g, p, v in zip(self.gradients, self.params, self.values, strict=True)
        )
        given = "params" if self.with_params else "None"
        x64 = "jax.config.update('jax_enable_x64', True)\n" if self.x64 else ""
        return (
            "import jax, jax.numpy as jnp, optax, gradkit as gk\nfrom numpy import inf, nan\n"
            f"{x64}steps = [\n{steps}\n]\n"
            f"ours = {self.chains.ours}\ntheirs = {self.chains.theirs}\n"
            "for tx in (ours, theirs):\n    state = tx.init(steps[0][1])\n"
            "    for gradient, params, value in steps:\n"
            f"        u, state = tx.update(gradient, state, {given}, value=value)\n"
            "        print(u)\n"
        )


def left_out(tree, chains):
    """Whether a chain holds what differs or fails by design, or what is to be mended."""
    masks = re.search("masked|partition|mask=", chains.ours)
    # A bare array that is masked away is None, as are parameters that were not given.
    bare = tree.text == "L0" and masks and re.search(NEEDS_PARAMS, chains.theirs)
    nothing_to_flatten = masks and "optax.flatten" in chains.ours
    return bare or nothing_to_flatten or re.search(VARIANCES_VANISH, chains.ours)


def draw_case(seed):
    rng = np.random.default_rng(seed)
    tree = TREES[rng.integers(len(TREES))]
    x64 = seed // GROUP % 5 == 4  # one setting for each group
    precision = str(rng.choice(IN_X64 if x64 else PRECISIONS))
    draw = Draw(rng, tree)
    size = rng.choice([2, 3, 4, 5], p=[0.35, 0.35, 0.2, 0.1])
    chains = draw.chain(size, DEPTH)
    while left_out(tree, chains):
        chains = draw.chain(size, DEPTH)
    names = draw_precisions(rng, tree, chains, precision, x64)
    default = "float64" if x64 else "float32"
    bare = any(
        shape is float and name == default for shape, name in zip(tree.shapes, names, strict=True)
    )
    params, gradients = draw_data(rng, tree, chains, half="float16" in names)
    with_params = bool(re.search(NEEDS_PARAMS, chains.theirs)) or rng.random() < 0.5
    values = [round(float(abs(rng.normal())) + 0.1, 3) for _ in range(STEPS)]
    dtypes = tuple(np.dtype(jnp.dtype(name)) for name in names)
    return Case(tree, chains, dtypes, x64, bare, params, gradients, values, with_params)


def draw_precisions(rng, tree, chains, precision, x64):
    """The dtype of each leaf: the precision, or one in which optax can say what is right."""
    default = "float64" if x64 else "float32"
    branches = re.search("MultiSteps|apply_if_finite", chains.theirs)  # which need equal dtypes
    if branches and x64:
        precision = default  # 1 − βᵗ is so in optax, and makes float32 float64
    if is_foreign(chains.ours) and re.search(f"MultiSteps|inject|{UNDERFLOWS}", chains.theirs):
        precision = default
    if precision != "mixed":
        return [precision] * len(tree.shapes)
    low = str(rng.choice(["bfloat16", "float16"]))
    names = [str(rng.choice(["float32", low])) for _ in tree.shapes]
    return ["float32" if s is float else name for s, name in zip(tree.shapes, names, strict=True)]


def draw_data(rng, tree, chains, half):
    """Leaves of parameters and gradients for each step, in float64."""
    kind = ["ordinary", "ordinary", "extreme", "not finite"][rng.integers(4)]
    overflows = half and is_foreign(chains.ours)  # in 16 bits
    if overflows or (kind == "not finite" and re.search(NANS_DIFFER, chains.ours)):
        kind = "ordinary"
    shapes = [() if s is float else s for s in tree.shapes]
    base = [rng.normal(size=s) for s in shapes]
    scale = 1.0
    if kind != "ordinary":
        scale = float(rng.choice([1e-3, 1.0, 1e3] if half else [1e-8, 1e-3, 1.0, 1e4, 1e10]))
    params = [[x + 0.1 * rng.normal(size=x.shape) for x in base] for _ in range(STEPS)]
    gradients = [[scale * rng.normal(size=s) for s in shapes] for _ in range(STEPS)]
    if rng.random() < 0.2:
        gradients = [gradients[0]] * STEPS
    odd = [0.0, -0.0] if kind == "ordinary" else [0.0, 1e-40, -1e-20, 3e4 if half else 1e10]

    def strewn(leaves, values, share):
        return [
            np.where(rng.random(x.shape) < share, rng.choice(values, x.shape), x) for x in leaves
        ]

    gradients = [strewn(leaves, odd, 0.2) for leaves in gradients]
    if kind == "not finite":
        bad = [np.nan] if re.search(INFINITIES_DIFFER, chains.ours) else [np.nan, np.inf, -np.inf]
        t = rng.integers(STEPS)
        gradients[t] = strewn(gradients[t], bad, 0.3)
    return params, gradients


def rounding(case):
    """The unit in which optax's chain, or a member of optax's, rounds between members."""
    named = re.findall(r"_dtype='(\w+)'", case.chains.theirs)
    dtypes = [np.promote_types(d, np.float32) for d in case.dtypes] + list(map(jnp.dtype, named))
    if is_foreign(case.chains.ours):
        dtypes += case.dtypes
    return max(float(jnp.finfo(d).eps) for d in dtypes)


def changes_in_optax(case):
    """Whether optax's own chain changes the state's dtypes, if there are members of optax."""
    if not is_foreign(case.chains.ours):
        return False
    tx = built(case.chains.theirs)
    ((gradient, params, value), *_) = case.given()
    try:
        state = tx.init(params)
        given = params if case.with_params else None
        _, following = eval_shape(tx.update, gradient, state, given, value=value)
    except Exception:
        return True
    return kinds(state) != kinds(following)


def dtypes_in_optax(case, wanted):
    """The dtypes of optax's updates."""
    if all(d.itemsize >= 4 for d in case.dtypes):
        return [x.dtype for x in wanted[0]]
    tx = built(case.chains.theirs)
    ((gradient, params, value), *_) = case.given(floats=False)
    given = params if case.with_params else None
    try:
        updates, _ = eval_shape(
            lambda g, p, v: tx.update(g, tx.init(params), p, value=v), gradient, given, value
        )
    except TypeError:  # its branches differ in dtype
        return list(case.dtypes)
    return [x.dtype for x in jax.tree.leaves(updates)]


def narrows(case):
    """Whether a memory is narrower than the updates: optax multiplies in its dtype then, so that it
    rounds the decay itself."""
    named = [jnp.dtype(name) for name in re.findall(r"_dtype='(\w+)'", case.chains.theirs)]
    return any(d.itemsize < max(4, *(x.itemsize for x in case.dtypes)) for d in named)


def rounds_decays(case):
    """Whether a decay is rounded to float32 on one side only: 1 − β is 1e-5 off for 0.999.

    `optax.inject_hyperparams` does; in float64 `optax.adafactor` does; gradkit does in 1 − βᵗ for
    parameters in float32 under `jax_enable_x64`.
    """
    single = case.x64 and (case.dtypes[0] == np.float32 or "adafactor" in case.chains.ours)
    return single or "inject_hyperparams" in case.chains.theirs


def is_foreign(ours):
    """Whether a member of optax's, or a chain, is in the chain: it computes in 16 bits."""
    return bool(re.search(r"optax\.(?!linear|exponential|piecewise|warmup)", ours))


# ── what is compared ─────────────────────────────────────────────────────────────────────────────


def built(text):
    return eval(text, dict(NAMES))


class Together:
    """Chains compiled as one function, which takes a third of the time that each alone takes."""

    def __init__(self, texts, cases, wide=False, jitted=True):
        self.cases, self.wide = cases, wide
        self.chains = [built(text) for text in texts]
        jit = functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
        self.step = jit(self.advance) if jitted else self.advance

    def advance(self, arguments):
        found = []
        for tx, case, (*given, value) in zip(self.chains, self.cases, arguments, strict=True):
            with blamed_on(case):
                found.append(tx.update(*given, value=value))
        return found

    def run(self, noise=None):
        """The updates of each case and step, a list of leaves in float64, and their states."""
        given = [case.given(self.wide, noise) for case in self.cases]
        states = []
        for tx, case, ((_, params, _), *_) in zip(self.chains, self.cases, given, strict=True):
            with blamed_on(case):
                states.append(tx.init(params))
        found, trail = [[] for _ in self.cases], [states]
        for t in range(STEPS):
            arguments = [
                (gradient, state, params if case.with_params else None, value)
                for case, steps, state in zip(self.cases, given, states, strict=True)
                for gradient, params, value in [steps[t]]
            ]
            both = self.step(arguments)
            states = [state for _, state in both]
            trail.append(states)
            for updates, (u, _) in zip(found, both, strict=True):
                updates.append(jax.tree.leaves(u))
        return found, list(zip(*trail, strict=True))


@contextlib.contextmanager
def blamed_on(case):
    try:
        yield
    except Exception as error:
        error.add_note(case.code())
        raise


def kinds(state, weak=False):
    """Structure, shapes and dtypes of a state, and weakness: what compiled code holds fixed."""
    leaves, structure = jax.tree.flatten(state)
    return structure, [
        (x.shape, x.dtype, not weak and getattr(x, "weak_type", False)) for x in leaves
    ]


def deviation(got, want, rtol, slack=0.0):
    """By how many tolerances an update differs; by infinitely many where one alone is finite.

    Where the slack is not finite, a rounding decides whether the update is.
    """
    with np.errstate(over="ignore"):
        want = np.asarray(want).astype(got.dtype).astype(np.float64)
    far = distance(got, want)
    tolerance = rtol * np.abs(want) + TINY[str(got.dtype)] + slack
    with np.errstate(invalid="ignore"):
        far = np.where((far == 0) | ~np.isfinite(slack), 0, far / tolerance)
    return float(np.where(np.isnan(far), np.inf, far).max(initial=0))


def largest_deviation(found, wanted, rtol, slack=None):
    slack = slack or [[np.zeros(x.shape) for x in u] for u in found]
    return max(
        (
            deviation(x, y, max(rtol, RTOL[str(x.dtype)]), s)
            for updates in zip(found, wanted, slack, strict=True)
            for x, y, s in zip(*updates, strict=True)
        ),
        default=0.0,
    )


def check(seeds):
    """Raises an `AssertionError` with every difference between the chains that the seeds draw."""
    cases = [draw_case(seed) for seed in seeds]
    problems = []
    with jax.enable_x64(cases[0].x64):
        ours = Together([case.chains.ours for case in cases], cases)
        theirs = Together([case.chains.theirs for case in cases], cases, wide=True)
        (found, states), (wanted, _) = ours.run(), theirs.run()
        eager = Together([cases[0].chains.ours], cases[:1], jitted=False).run()[0][0]
        for i, (seed, case) in enumerate(zip(seeds, cases, strict=True)):
            what = differences(case, found[i], states[i], wanted[i])
            problems += [(seed, text) for text in what]
            pairs = [("optax", found[i], wanted[i])] * (not narrows(case))
            pairs += [("gradkit outside jit", found[0], eager)] * (i == 0)
            for name, got, want in pairs:
                rtol = 1e-4 if rounds_decays(case) else 0
                far = largest_deviation(got, want, rtol)
                if far > 1:
                    far = largest_deviation(got, want, rtol, magnified(case, theirs, i, wanted[i]))
                if far > 1:
                    text = f"{far:.3g} tolerances from {name}:\n{got}\n{want}"
                    problems.append((seed, text))
    assert not problems, "\n".join(
        f"seed {seed}: {text}\n{cases[seed - seeds[0]].code()}" for seed, text in problems
    )


def differences(case, found, states, wanted):
    """What there is to say of the dtypes of updates and states."""
    weak = case.python_floats and is_foreign(case.chains.ours)  # optax's memories are so at init
    kept = all(kinds(state, weak) == kinds(states[0], weak) for state in states[1:])
    if not kept and not changes_in_optax(case):
        yield "the state's structure, shapes or dtypes change"
    got, expected = [x.dtype for x in found[0]], dtypes_in_optax(case, wanted)
    widened = [np.float32 if d.itemsize < 4 else d for d in case.dtypes]
    for dtype, theirs, own, wide in zip(got, expected, case.dtypes, widened, strict=True):
        # What meets a scalar or a memory in float32 leaves optax in float32, and gradkit, as
        # docs/architecture.md says, in the wider dtype of gradients and parameters.
        if dtype != theirs and not (theirs == wide and dtype == own):
            yield f"updates in {got}, those of optax in {expected}"


def magnified(case, theirs, i, wanted):
    """How far the answers lie apart that roundings lead to: for each number a tolerance.

    Roundings to 16 bits between members, of which there are many, count for the whole leaf.
    """
    runs = [theirs.run(noise)[0][i] for noise in range(4)]
    rough = rounding(case) > 1e-4
    if rough:
        runs.append(Together([case.chains.theirs], [case]).run()[0][0])

    def size(leaf):
        """The largest number that a leaf has seen: a difference of such may be any rounding."""
        whole = np.concatenate([np.ravel(u[leaf]).astype(np.float64) for u in wanted])
        return np.abs(whole[np.isfinite(whole)]).max(initial=0)

    def spread(t, leaf, x):
        apart = 16 * np.max([distance(run[t][leaf], x) for run in runs], axis=0)
        apart = apart + 2 * rounding(case) * size(leaf)
        widest = apart[np.isfinite(apart)].max(initial=0)
        return np.maximum(apart, widest) if rough else apart

    return [
        [spread(t, leaf, x) for leaf, x in enumerate(updates)] for t, updates in enumerate(wanted)
    ]


def distance(x, y):
    """|x − y| in float64, 0 where both are the same infinity or NaN."""
    x, y = (np.asarray(a).astype(np.float64) for a in (x, y))
    with np.errstate(invalid="ignore"):
        return np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, np.abs(x - y))


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(group, marks=[pytest.mark.slow] * (group >= QUICK_GROUPS))
        for group in range(GROUPS)
    ],
)
def test_random_chains_are_those_of_optax(group):
    check(range(group * GROUP, (group + 1) * GROUP))


def test_every_name_that_gradkit_and_optax_share_is_drawn_or_is_said_to_differ():
    shared = {*shared_names()} - {"chain"}
    assert shared >= {"adam", "clip", "masked", "partition", "scale_by_rms"}
    assert {*NOT_DRAWN} <= shared
    for name in NOT_DRAWN:
        assert "Differs:" in getattr(gk, name).__doc__
    unknown = {
        (name, argument)
        for name in DRAWN
        for argument in arguments_of(name)
        if argument not in ARGUMENTS and argument not in BUILT
    }
    assert not unknown, "say in ARGUMENTS what values these may take"
    drawn = " ".join(draw_case(seed).chains.ours for seed in range(GROUP * GROUPS))
    assert not [name for name in DRAWN if f"gk.{name}(" not in drawn]
