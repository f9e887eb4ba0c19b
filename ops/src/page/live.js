/* ---- the daemon: status by asking, steps by events, history once and whenever something was missed ---- */

/* Means of the day are made by the daemon alone: they are asked for every ten minutes. */
const POLL_MS = 2000, DRAW_MS = 500, HISTORY_POINTS = 500, HISTORY_MS = 600000;
let status = null, lostSince = null, clockOffset = 0, missed = 0, isListening = false;

const daemonNow = () => Date.now() / 1000 + clockOffset;

function showHeader() {
  const lost = lostSince !== null;
  document.body.classList.toggle("is-lost", lost);
  const state = lost ? "not reachable" : status ? (status.failure ? "failed" : status.state || "running") : "connecting …";
  const looks = { running: "good", failed: "bad", "not reachable": "bad", "connecting …": "soft" };
  setText($("state"), state);
  setClass($("state"), "pill " + (looks[state] || "warn"));
  if (!status) return;
  const { step, steps } = status.train || {};
  const done = isNumber(steps) && steps > 0 ? " (" + percent(step / steps) + ")" : "";
  setText($("headline"), isNumber(step) ? "Step " + number(step) + done : "");
  setText($("about"), [status.version && "version " + status.version, "up " + duration(status.uptime_seconds)].filter(Boolean).join(" · "));
  document.title = (state === "running" ? "" : state + " · ") + (isNumber(step) ? "step " + number(step) + " · " : "") + "MergeDistill";
}

/* What a person has to know before anything else. */
function notices() {
  const list = [];
  const add = (key, look, head, text) => list.push({ key, look, head, text });
  if (lostSince !== null) {
    add("lost", "bad", "No connection to the daemon", "since " + clock(lostSince) + ". What is shown is from then. It is asked again every " + POLL_MS / 1000 + " s.");
  }
  if (!status) return list;
  const stages = status.stages || {}, teachers = Object.entries(status.teachers || {});
  if (status.failure) add("failure", "bad", "The daemon failed", status.failure);
  if (Object.values(stages).some(stage => stage.waiting === "disk space")) {
    add("disk", "bad", "The disk is full", "Labelling stands still until there is room; nothing is lost.");
  }
  const stalled = teachers.filter(([, teacher]) => teacher.state === "stalled");
  for (const [name, teacher] of teachers) if (teacher.state === "lost") add("lost-" + name, "bad", "The device of teacher " + name + " is lost",
    "Since " + moment(teacher.since_unix_seconds) + "; its batches wait until it is there again.");
  for (const [name, teacher] of teachers) if (teacher.labelled_by === "workers" && !(status.workers || []).some(worker => worker.teacher === name && !worker.silent)) {
    add("alone-" + name, "warn", "Nobody labels for teacher " + name + ".", "Its batches wait for a worker: mergedistill worker.");
  }
  if (stalled.length) {
    const since = Math.min(...stalled.map(([, teacher]) => teacher.since_unix_seconds).filter(isNumber));
    const names = stalled.map(([name]) => name).join(", ");
    add("stalled", "bad", stalled.length === 1 ? "Teacher " + names + " is stalled:" : stalled.length + " teachers are stalled:",
      (stalled.length === 1 ? "" : names + ", ") + "at work on one batch" + (isNumber(since) ? " since " + moment(since) : "") + ".");
  }
  for (const [name, inbox] of Object.entries(status.inboxes || {})) if (inbox.failed) add("inbox-" + name, "bad", "The inbox of " + name + " takes nothing more", inbox.failed);
  const paused = Object.entries(stages).filter(([, stage]) => stage.paused).map(([name]) => name);
  if (paused.length) add("paused", "warn", "Paused:", paused.join(", ") + ". Nothing is lost; resume when you like.");
  if (status.state === "stopping" && !status.failure) add("stopping", "warn", "The daemon is stopping.", "What is in flight is made durable.");
  if (status.state === "renewing") add("renewing", "warn", "A teacher is being added.", "The stages are opened anew in a moment.");
  for (const { stage, seconds } of status.stuck || []) {
    add("stuck-" + stage, "bad", "Stage " + stage + " is stuck.", "It has given no sign for " + duration(seconds) + ". The log says more.");
  }
  const wait = stages.trainer && stages.trainer.waiting;
  if (wait && !comes(wait)) add("waiting", "warn", "Training waits", "for " + wait + ".");
  return list;
}

function showNotices() {
  keyed($("notices"), notices(), one => one.key, one => element("li", { class: one.look }, element("b"), element("span")),
    (node, one) => { setText(node.firstElementChild, one.head); setText(node.lastElementChild, one.text); });
}

function show() {
  showHeader();
  showNotices();
  if (!status) return;
  showControl(status);
  showFlow(status);
  showTraining(status);
  showEvaluation(status.evaluation);
  for (const part of [showTeachers, showWorkers, showCorpora, showLog, showInboxes, showQuarantine, showRelease, showChanges, showWarnings]) part(status);
}

async function get(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  const date = Date.parse(response.headers.get("date"));
  /* The daemon's clock counts; the header has whole seconds. */
  if (isNumber(date) && Math.abs(date - Date.now()) > 2000) clockOffset = (date - Date.now()) / 1000;
  const body = await response.json();
  if (!response.ok || !isObject(body)) throw new Error(isObject(body) && isObject(body.error) ? body.error.message : "error " + response.status);
  return body;
}

let asking = null;

/* Asks for the status; whoever asks meanwhile gets the same answer. */
function refresh() {
  asking ||= ask().finally(() => { asking = null; });
  return asking;
}

async function ask() {
  try {
    const before = status;
    status = await get("v1/status");
    const wasLost = lostSince !== null;
    lostSince = null;
    takeSnapshot(status);
    if (wasLost || !before || before.pid !== status.pid) {
      if (before) noteEvent(before.pid === status.pid ? "connected again" : "the daemon was started anew");
      askForHistory();
    } else if (!course.complete || Date.now() - historyAt > HISTORY_MS) askForHistory();
    takeStatusSample(status);
    if (!isListening) listen();
  } catch {
    lostSince ??= Date.now() / 1000;
  }
  show();
  redraw();
}

function takeStatusSample({ rates, stages, log }) {
  const flight = name => stages && stages[name] && stages[name].in_flight;
  takeSample({ unix_seconds: daemonNow(), label_tokens_per_second: rates && rates.label_tokens_per_second,
    train_tokens_per_second: rates && rates.train_tokens_per_second, backlog_bytes: log && log.backlog_bytes, log_bytes: log && log.bytes, memory_bytes: status.memory_bytes,
    ingest_examples_per_second: rate(one => one.stages && one.stages.ingest && one.stages.ingest.items_out),
    ingest_in_flight: flight("ingest"), teacher_in_flight: flight("teacher"), log_in_flight: flight("log"), trainer_in_flight: flight("trainer") });
}

let askingHistory = false, askAgain = false, historyAt = 0;
/* Steps that events told of since the history was asked for: it may be from before them. */
const since = [];

/* One question at a time; what is missed meanwhile makes one more. */
async function askForHistory() {
  askAgain = askingHistory;
  if (askingHistory) return;
  askingHistory = true;
  since.length = 0;
  historyAt = Date.now();
  try {
    takeHistory(await get("v1/history?points=" + HISTORY_POINTS));
    const last = course.steps.step[course.steps.step.length - 1] || 0;
    since.filter(step => step.step > last).forEach(takeStep);
  } catch { /* The status tells that there is no connection; then it is asked again. */ }
  askingHistory = false;
  if (askAgain) return askForHistory();
  redraw();
}

let drawing = null;

/* Steps can come faster than anybody looks. */
function redraw() {
  drawing ??= setTimeout(() => {
    drawing = null;
    if (document.hidden) return;
    if (status && isObject(status.train)) drawSteps();
    drawEvaluations();
    drawLoad(status);
  }, course.drawn ? DRAW_MS : 0);
  course.drawn = true;
}

function showFeed(text) {
  setText($("feed"), "Feed: " + text + (missed ? ", " + plural(missed, "event") + " missed; the history was asked for again" : ""));
}

function listen() {
  isListening = true;
  const source = new EventSource("v1/events");
  const read = handle => event => {
    try { handle(JSON.parse(event.data)); } catch { showFeed("one event could not be read"); }
  };
  const on = (name, handle) => source.addEventListener(name, read(handle));
  source.onopen = () => showFeed("live");
  source.onerror = () => {
    showFeed("reconnecting …");
    /* A browser gives up when the answer was an error: then the next status begins anew. */
    if (source.readyState === EventSource.CLOSED) isListening = false;
  };
  on("step", step => {
    takeStep(step);
    if (askingHistory) since.push(step);
    if (status && isObject(status.train)) Object.assign(status.train, step);
    if (course.steps.step.length > COURSE_POINTS) askForHistory();
    redraw();
  });
  on("evaluation", evaluation => {
    takeEvaluation(evaluation);
    noteEvent("evaluation at step " + number(evaluation.step));
    refresh();
  });
  on("checkpoint", ({ step }) => noteEvent("checkpoint at step " + number(step)));
  on("waiting", ({ language }) => noteEvent("training waits for text of " + language, "warn"));
  on("resumed", ({ step }) => { noteEvent("training goes on from step " + number(step)); askForHistory(); });
  on("release", release => { noteEvent("release " + release.name + ": " + release.state + ", step " + number(release.step)); askForHistory(); });
  on("missed", gap => {
    missed += gap.missed;
    showFeed("live");
    noteEvent(plural(gap.missed, "event") + " missed", "warn");
    askForHistory();
  });
}

showFeed("connecting …");
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  /* Nothing was sampled while nobody looked. */
  askForHistory();
  refresh();
});
