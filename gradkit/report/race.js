// The race: takes the steps and hears the reader.

const MOST_STEPS = 2000;
const SLIDERS = ["rate", "momentum", "damping"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const rows = {}; // of the table, with what is drawn of each method

function buildTable() {
  for (const [method, { title }] of Object.entries(METHODS)) {
    const row = add(byId("rows"), "tr"), head = add(row, "th", { scope: "row" });
    const label = add(head, "label"), check = add(label, "input", { type: "checkbox" });
    check.checked = true;
    check.addEventListener("change", drawRace);
    swatch(label, method, "M1 6h24", MARKS[method]);
    add(label, "span", { text: title });
    const kinds = ["", "number", "number", "number"];
    const cells = kinds.map((kind) => add(row, "td", { class: kind }));
    const line = add(byId("ways"), "polyline", { class: `line m-${method}` });
    const mark = add(byId("ways"), "path", { class: `end m-${method}`, d: MARKS[method] });
    rows[method] = { row: { check, cells }, line, mark };
  }
}
/** Puts all methods back to the start. */
function reset() {
  race.running = false;
  race.walkers = Object.keys(METHODS).map((method) => ({
    ...walker(race.surface, method, race.start), ...rows[method],
    way: [race.start], status: "at the start", done: false,
  }));
  byId("play").textContent = "Start";
  drawRace();
  drawSpectrum();
}

/** What has become of a method, once nothing more will; empty while it is under way. */
function outcome({ at, here: { f, g, h }, steps }) {
  const { extent, bounded, tol } = race.surface;
  if (bounded && !Number.isFinite(f) && at.every(Number.isFinite)) return "left the slice";
  if (!Number.isFinite(f) || Math.hypot(...at) > 1e3 * (extent[1] - extent[0])) return "diverged";
  if (Math.hypot(...g) <= tol) {
    const [most, least] = eigen(h).values;
    return most > 0 && least > 0 ? "at a minimum" : most < 0 ? "at a maximum" : "at a saddle";
  }
  return steps >= MOST_STEPS ? "still going" : "";
}

/** Takes so many steps of every method that is under way; says whether any still is. */
function advance(count) {
  for (const one of race.walkers) {
    for (let k = 0; k < count && !one.done; k++) {
      const end = outcome(one);
      if (!end) walk(race.surface, one, race.options);
      if (one.at.every(Number.isFinite)) one.way.push(one.at);
      const now = end || outcome(one);
      one.done = now !== "";
      one.status = now || "under way";
    }
  }
  drawRace();
  const going = race.walkers.some((one) => !one.done);
  if (!going) finish();
  return going;
}

function finish() {
  race.running = false;
  byId("play").textContent = "Start";
  const shown = race.walkers.filter((one) => one.row.check.checked);
  say(shown.map((one) => `${METHODS[one.method].title}: ${one.status}`
    + ` after ${one.steps} step${one.steps === 1 ? "" : "s"}`).join("; ") + ".");
}

const say = (words) => { byId("summary").textContent = words; };

/** Goes on by itself, at the speed that is chosen now. */
function goOn() {
  clearTimeout(race.timer);
  const speed = Number(byId("speed").value), count = Math.max(1, Math.round(speed / 50));
  race.timer = setTimeout(() => {
    if (race.running && advance(count)) goOn();
  }, 1000 * count / speed);
}

/** Starts, goes on or pauses; where motion is not wanted, the whole race at once. */
function play() {
  if (race.running) {
    race.running = false;
    byId("play").textContent = "Go on";
    return;
  }
  if (race.walkers.every((one) => one.done)) reset();
  if (quiet.matches) { advance(MOST_STEPS + 1); return; }
  race.running = true;
  byId("play").textContent = "Pause";
  say(`Racing from ${place(race.start)}.`);
  goOn();
}

/** Moves the start to a point of the plane. */
function startAt(x, y) {
  const [x0, x1, y0, y1] = race.surface.extent;
  race.start = [Math.max(x0, Math.min(x1, x)), Math.max(y0, Math.min(y1, y))];
  reset();
  say(`Start at ${place(race.start)}, loss ${text(race.surface.at(...race.start).f)}.`);
}

/** Reads the sliders; a race that was run is run again with what they say now. */
function readOptions() {
  const [rate, momentum, damping] = SLIDERS.map((name) => Number(byId(name).value));
  race.options = { rate: 10 ** rate, momentum, damping: 10 ** damping };
  for (const name of SLIDERS) {
    const words = text(race.options[name]);
    byId(`${name}-value`).textContent = words;
    byId(name).setAttribute("aria-valuetext", words);
  }
  if (!race.surface) return;
  const again = race.walkers.some((one) => one.steps > 0), going = race.running;
  reset();
  if (going) play();
  else if (again) advance(MOST_STEPS + 1);
}

function chooseSurface() {
  race.surface = surfaces[byId("surface").value];
  race.walkers = [];
  race.start = [...race.surface.start];
  const usual = Math.log10(race.surface.rate), slider = byId("rate");
  slider.min = (usual - 2).toFixed(2);
  slider.max = (usual + 1.2).toFixed(2);
  slider.value = usual.toFixed(2);
  byId("damping").value = Math.log10(rounded(0.01 * curvatures().at[0])).toFixed(2);
  drawPlane();
  readOptions();
  say(`Surface: ${race.surface.title}. Start at ${place(race.start)}.`);
}

function listen() {
  const plot = byId("plot");
  plot.addEventListener("click", (event) => {
    const box = plot.getBoundingClientRect(), [x0, x1, y0, y1] = race.surface.extent;
    const px = (event.clientX - box.left) * SIZE / box.width - LEFT;
    const py = (event.clientY - box.top) * SIZE / box.height - TOP;
    if (px < 0 || px > WIDE || py < 0 || py > HIGH) return;
    startAt(x0 + (x1 - x0) * px / WIDE, y1 - (y1 - y0) * py / HIGH);
    play();
  });
  plot.addEventListener("keydown", (event) => {
    const way = ARROWS[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (way) {
      const [x0, x1, y0, y1] = race.surface.extent, share = event.shiftKey ? 0.1 : 0.02;
      const [x, y] = race.start;
      startAt(x + way[0] * share * (x1 - x0), y + way[1] * share * (y1 - y0));
    } else if (event.key === "Enter" || event.key === " ") play();
    else return;
    event.preventDefault();
  });
  for (const name of SLIDERS) byId(name).addEventListener("input", readOptions);
  byId("surface").addEventListener("change", chooseSurface);
  byId("play").addEventListener("click", play);
  byId("step").addEventListener("click", () => {
    race.running = false;
    byId("play").textContent = "Go on";
    if (advance(1)) say(`Step ${Math.max(...race.walkers.map((one) => one.steps))}.`);
  });
  byId("whole").addEventListener("click", () => advance(MOST_STEPS + 1));
  byId("reset").addEventListener("click", () => startAt(...race.start));
}

for (const [value, { title }] of Object.entries(surfaces)) {
  add(byId("surface"), "option", { value, text: title });
}
buildTable();
listen();
chooseSurface();
