/* ---- training and evaluation ---- */

const stepCharts = new Map(), evaluationCharts = new Map(), loadCharts = new Map();

function showTraining(status) {
  const { train } = status;
  $("training-section").hidden = !isObject(train);
  if (!isObject(train)) return;
  const { step, steps } = train, perSecond = rate(one => one.train && one.train.step);
  const left = isNumber(steps) && perSecond > 0 ? (steps - step) / perSecond : null;
  $("progress-row").hidden = !(isNumber(steps) && steps > 0);
  if (!$("progress-row").hidden) {
    $("progress").max = steps;
    $("progress").value = Math.min(step, steps);
    setText($("progress-text"), "step " + number(step) + " of " + number(steps) + " (" + percent(step / steps) + ")"
      + (left > 0 ? ", about " + about(left) + " left" : ""));
  }
  const tiles = [["Loss", nats(train.loss), "nats"], ["Distillation", nats(train.kd), "nats"], ["Gold labels", nats(train.mlm), "nats"],
    ["Top-1", percent(train.top1), ""], ["λ", small(train.lambda), ""], ["Learning rate", small(train.learning_rate), ""],
    ["Gradient norm", small(train.grad_norm), ""], ["Speed", isNumber(perSecond) ? small(perSecond) : NONE, "steps/s"],
    ["Batch", number(train.copies), "copies"], ["Masked", number(train.masked_positions), "positions"]];
  keyed($("tiles"), tiles, tile => tile[0],
    ([name]) => element("div", {}, element("dt", {}, name), element("dd", {}, element("span"), " ", element("small"))),
    (node, [, value, unit]) => { setText(node.lastElementChild.firstElementChild, value); setText(node.lastElementChild.lastElementChild, unit); });
}

const stepChart = (id, options) => at(stepCharts, id, () => new Chart($("step-charts"), { axis: "step", ...options }));
const evaluationChart = (id, options) => at(evaluationCharts, id, () => new Chart($("evaluation-charts"), { axis: "step", ...options }));
const loadChart = (id, options) => at(loadCharts, id, () => new Chart($("load-charts"), { axis: "time", ...options }));

function drawSteps() {
  const { steps, releases, complete } = course, xs = steps.step;
  const has = xs.length > 0, empty = $("training-empty");
  empty.hidden = has && complete;
  setText(empty, !complete ? "The steps before this start are being read …" : "No step has been made yet. Charts appear with the first one.");
  const column = (name, title, index, extremes) => ({ name: title, xs, ys: steps[name] || [], index,
    low: extremes && steps[name + "_min"], high: extremes && steps[name + "_max"] });
  const others = (name, from) => releases.map((release, index) => ({ name: "release " + release.name, xs: release.steps.step, ys: release.steps[name] || [], index: from + index }))
    .filter(one => one.xs.length);
  stepChart("loss", { title: "Loss", unit: "nats", format: nats })
    .show([column("loss", "total", 0, true), column("kd", "distillation", 1), column("mlm", "gold labels", 2), ...others("loss", 3)]);
  stepChart("top1", { title: "Top-1 accuracy in the batch", format: percent, least: 0 }).show([column("top1", "top-1", 0), ...others("top1", 3)]);
  stepChart("grad", { title: "Gradient norm", unit: "before clipping", format: small, least: 0, log: true })
    .show([column("grad_norm", "mean", 0, true), ...others("grad_norm", 3)]);
  stepChart("rate", { title: "Learning rate", format: small, least: 0 }).show([column("learning_rate", "learning rate", 0), ...others("learning_rate", 3)]);
  stepChart("lambda", { title: "λ, the weight of distillation", format: small, least: 0, greatest: 1 }).show([column("lambda", "λ", 0), ...others("lambda", 3)]);
  stepChart("speed", { title: "Speed of a step", unit: "tokens/s", format: compact, least: 0 }).show([column("tokens_per_second", "tokens/s", 0)]);
}

function drawEvaluations() {
  const { step: xs, languages } = course.evaluations;
  const names = Object.keys(languages).sort();
  const student = figure => names.map((name, index) => ({ name, xs, ys: languages[name][figure] || [], index }));
  const teachers = [...new Set(names.flatMap(name => Object.keys(languages[name].teachers)))].sort();
  const pairs = names.flatMap(name => teachers.filter(teacher => languages[name].teachers[teacher])
    .map(teacher => ({ name: teacher + " · " + name, xs, ys: languages[name].teachers[teacher].rdt || [] })));
  pairs.forEach((pair, index) => { pair.index = index; });
  evaluationChart("loss", { title: "Student’s loss by language", unit: "nats", format: nats }).show(student("student_loss"));
  evaluationChart("top1", { title: "Student’s top-1 by language", format: percent, least: 0 }).show(student("student_top1"));
  evaluationChart("rdt", { title: "RDT by teacher", unit: "0 is the teacher", format: signed, greatest: 0 }).show(pairs);
}

function showEvaluation(evaluation) {
  const languages = isObject(evaluation) && isObject(evaluation.languages) ? evaluation.languages : {};
  $("evaluation-section").hidden = Object.keys(languages).length === 0 && course.evaluations.step.length === 0;
  const rows = Object.entries(languages).flatMap(([language, figures]) => {
    const teachers = Object.entries(figures.teachers || {});
    const own = { key: language, cells: [[language], ["—", "name soft"], [NONE], [nats(figures.student_loss)], [NONE], [percent(figures.student_top1)], [NONE],
      [NONE], [NONE], [percent(figures.student_ece)], [NONE]] };
    return teachers.length ? teachers.map(([teacher, one], index) => ({ key: language + "\n" + teacher, cells: [[index ? "" : language],
      [teacher, "name wide"], [nats(one.loss)], [nats(one.student_loss)], [percent(one.top1)], [percent(one.student_top1)],
      [signed(one.rdt), isNumber(one.rdt) && one.rdt >= 0 ? "good" : ""],
      [percent(one.agreement)], [percent(one.ece)], [percent(one.student_ece)], [percent(one.retained_mass)]] })) : [own];
  });
  setText($("evaluation-step"), isObject(evaluation) && isNumber(evaluation.step) ? "at step " + number(evaluation.step) : "");
  showTable($("evaluation"), rows);
}

/* ---- rates and queues over time ---- */

const SPANS = [["15 min", 900, 0], ["1 hour", 3600, 0], ["6 hours", 21600, 1], ["24 hours", 86400, 1]];
let span = 0;

function drawLoad(status) {
  const [, seconds, series] = SPANS[span], samples = course.samples[series];
  keyed($("spans"), SPANS, one => one[0], ([name]) => {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => { span = SPANS.findIndex(one => one[0] === name); redraw(); });
    return button;
  }, (button, one) => button.setAttribute("aria-pressed", String(SPANS[span] === one)));
  if (!samples) return;
  const times = samples.unix_seconds, now = Math.max(daemonNow(), times[times.length - 1] || 0);
  const first = times.findIndex(time => time >= now - seconds), from = first < 0 ? times.length : first;
  const xs = times.slice(from), gap = 4 * samples.seconds;
  /* A young run fills the chart; an old one shows the whole span. */
  const domain = [Math.max(now - seconds, Math.min(times[from] || now, now - 60)), now];
  const one = (name, title, index) => ({ name: title, xs, ys: (samples[name] || []).slice(from), index });
  const limit = status && status.log && status.log.max_backlog_bytes;
  loadChart("tokens", { title: "Tokens", unit: "per second", format: compact, least: 0 })
    .show([one("label_tokens_per_second", "labelled", 0), one("train_tokens_per_second", "trained on", 1)], { gap, domain });
  loadChart("backlog", { title: "Backlog", unit: limit ? "dashed: its limit" : "", format: bytes, least: 0 })
    .show([one("backlog_bytes", "to be read by training", 0)], { gap, domain, limit: { value: limit } });
  loadChart("queues", { title: "In flight", unit: "examples", format: compact, least: 0 })
    .show(["ingest", "teacher", "log", "trainer"].map((name, index) => one(name + "_in_flight", name, index)), { gap, domain });
  loadChart("examples", { title: "Examples read", unit: "per second", format: compact, least: 0 }).show([one("ingest_examples_per_second", "examples", 0)], { gap, domain });
  loadChart("log", { title: "Log", unit: "size on disk", format: bytes, least: 0 }).show([one("log_bytes", "size", 0)], { gap, domain });
  loadChart("memory", { title: "Memory of the daemon", format: bytes, least: 0 }).show([one("memory_bytes", "resident", 0)], { gap, domain });
}
