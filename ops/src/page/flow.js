/* ---- the pipeline as a flow ---- */

const IDLE_SECONDS = 30, RATE_WINDOW_MS = 10000;
const snapshots = [];

/* Increase a second of a counter over the last seconds; null until it was seen twice. */
function rate(of) {
  const last = snapshots[snapshots.length - 1], first = snapshots.find(snapshot => isNumber(of(snapshot.status)));
  if (!first || first === last) return null;
  const seconds = (last.at - first.at) / 1000, items = of(last.status) - of(first.status);
  return seconds > 0.5 && items >= 0 ? items / seconds : null;
}

function takeSnapshot(status) {
  const at = performance.now(), last = snapshots[snapshots.length - 1];
  /* Another process, or stages that were opened anew: counters begin anew. */
  const out = one => Object.values(one.stages || {}).reduce((sum, stage) => sum + (stage.items_out || 0), 0);
  if (last && (last.status.pid !== status.pid || out(status) < out(last.status))) snapshots.length = 0;
  snapshots.push({ at, status });
  while (snapshots.length > 2 && at - snapshots[0].at > RATE_WINDOW_MS) snapshots.shift();
}

/* [state, look, what it waits for] */
function stageState(stage, name, status) {
  if (!stage) return ["not part of this run", "soft"];
  if (stage.paused) return ["paused", "warn"];
  if (status.state === "stopping") return ["stopping", "warn"];
  if (status.state === "renewing") return ["opened anew", "warn"];
  if (stage.waiting) return stage.waiting === "disk space" ? ["stands still", "bad", "for disk space"]
    : ["waiting", comes(stage.waiting) ? "soft" : "warn", "for " + stage.waiting];
  const since = stage.last_progress_timestamp_seconds;
  if (!isNumber(since)) return ["not started", "soft"];
  const idle = daemonNow() - since, reason = stage.waits_for ? "waits for " + stage.waits_for : "";
  return idle > IDLE_SECONDS ? ["idle for " + duration(idle), "soft", reason] : ["running", "good", reason];
}

/* What is waited for comes by itself, unless a reason is given why not. */
const comes = waiting => !waiting.includes(", ");

/* The nodes: {key, title, stage: what can be paused, state, rate, unit, facts, flows: how much goes on to the next one} */
function nodes(status) {
  const stages = status.stages || {}, rates = status.rates || {}, log = status.log || {};
  const state = name => stageState(stages[name], name, status);
  const stage = name => stages[name] || {};
  const teachers = Object.values(status.teachers || {}), corpora = listOfCorpora(status);
  const trains = isObject(status.train), labels = Boolean(stages.ingest) && corpora.length > 0;
  const count = (items, test, one) => { const found = items.filter(test).length; return found ? found + " " + one : null; };
  const states = ["reading", "waiting", "paused", "ended"].map(name => count(corpora, corpus => corpus.state === name, name)).filter(Boolean);
  const stalled = teachers.filter(teacher => teacher.state === "stalled" || teacher.state === "lost").length;
  const examples = rate(one => one.stages && one.stages.ingest && one.stages.ingest.items_out);
  const steps = rate(one => one.train && one.train.step);
  const documents = rate(one => listOfCorpora(one).reduce((sum, corpus) => sum + (corpus.documents || 0), 0));
  const teacherState = stalled && !stage("teacher").paused ? ["stalled", "bad", stalled + " of " + teachers.length] : state("teacher");
  return [
    labels && { key: "corpora", title: "Corpora", state: [states.join(", ") || "none", corpora.some(one => one.state === "reading") ? "good" : "soft"],
      rate: documents, unit: "documents/s", flows: documents,
      facts: [["Corpora", number(corpora.length)], ["Characters", compact(sum(corpora, "characters_available"))],
        sum(corpora, "quarantined") ? ["Quarantined", number(sum(corpora, "quarantined")), "warn"] : null] },
    labels && { key: "ingest", title: "Ingest", stage: "ingest", paused: stage("ingest").paused, state: state("ingest"), rate: examples, unit: "examples/s", flows: examples,
      queue: stage("ingest").in_flight,
      facts: [["Read", number(stage("ingest").items_in)], ["Handed on", number(stage("ingest").items_out)]] },
    labels && { key: "teacher", title: "Teachers", stage: "teacher", paused: stage("teacher").paused, state: teacherState, rate: rates.label_tokens_per_second, unit: "tokens/s",
      flows: rates.label_tokens_per_second, queue: stage("teacher").in_flight,
      facts: [["Labelling now", number(teachers.filter(one => one.state === "labelling").length) + " of " + teachers.length],
        ["Labelled", number(stage("teacher").items_out)], ["Dropped copies", sum(teachers, "dropped_copies") ? number(sum(teachers, "dropped_copies")) : null, "warn"]] },
    { key: "log", title: "Log", state: labels ? state("log") : ["read only", "soft"],
      rate: labels ? rate(one => one.log && one.log.durable) : null, unit: "entries/s", flows: rates.train_tokens_per_second, queue: labels ? stage("log").in_flight : null,
      facts: [["Durable", number(log.durable)], ["Size", bytes(log.bytes)], ["Segments", number(log.segments)]] },
    trains && { key: "trainer", title: "Trainer", stage: "trainer", paused: stage("trainer").paused, state: state("trainer"), rate: rates.train_tokens_per_second, unit: "tokens/s",
      queue: stage("trainer").in_flight,
      facts: [["Step", number(status.train.step)],
        ["Steps a second", isNumber(steps) ? small(steps) : NONE], ["Loss", nats(status.train.loss)]] },
  ].filter(Boolean);
}

const sum = (items, field) => items.reduce((total, item) => total + (item[field] || 0), 0);
const listOfCorpora = status => (isObject(status.corpora) && status.corpora.corpora) || [];

function createNode(node) {
  if (node.edge) {
    return element("li", { class: "edge" },
      shape("svg", { "aria-hidden": "true" },
        shape("path", { class: "line down", d: "M6 0V19" }), shape("path", { class: "tip down", d: "M0.5 18H11.5L6 26Z" }),
        shape("path", { class: "line across", d: "M0 6H34" }), shape("path", { class: "tip across", d: "M33 0.5V11.5L41 6Z" })),
      element("span"));
  }
  return element("li", { class: "card stage" },
    element("h3", {}, node.title), element("div", { class: "rate" }, element("span"), " ", element("small", {}, node.unit)),
    element("div", { class: "look" }), element("div", { class: "waits" }), element("dl", { class: "facts" }));
}

function updateNode(item, node) {
  if (node.edge) {
    setClass(item, "edge" + (node.moves ? " moving" : ""));
    return setText(item.lastElementChild, isNumber(node.queue) ? compact(node.queue) + " in flight" : "");
  }
  const [, speed, state, waits, facts] = item.children;
  const [text, tone, reason] = node.state;
  setClass(item, "card stage" + (tone === "bad" || tone === "warn" ? " is-" + tone : ""));
  setText(speed.firstElementChild, compact(node.rate));
  setText(state, text);
  setClass(state, "look " + tone);
  setText(waits, reason || "");
  showFacts(facts, node.facts);
  pauseButton(item, node.stage && { name: node.title.toLowerCase(), paused: node.paused, path: "", body: { stage: node.stage } });
}

function showFlow(status) {
  const all = nodes(status);
  /* What waits in front of a stage stands on the arrow that leads to it. */
  const items = all.flatMap((node, index) => index === 0 ? [node]
    : [{ edge: true, key: "to-" + node.key, queue: node.queue, moves: all[index - 1].flows > 0 }, node]);
  keyed($("flow"), items, node => node.key, createNode, updateNode);
  showBackpressure(status);
}

/* The way back: ingest waits while the log holds more than the backlog that training has still to read. */
function showBackpressure(status) {
  const box = $("backpressure"), { backlog_bytes: backlog, max_backlog_bytes: limit } = status.log || {};
  box.hidden = !(isNumber(backlog) && isNumber(limit) && limit > 0 && status.stages && status.stages.ingest);
  if (box.hidden) return;
  if (!box.firstChild) {
    box.append(element("div", { class: "loop", "aria-hidden": "true" }),
      element("div", { class: "text" }, element("span"), element("meter", { min: "0", max: "1", "aria-label": "Backlog, of its limit" }), element("span")));
  }
  const [before, meter, after] = box.lastElementChild.children, waits = backlog >= limit;
  setText(before, "Backlog that training has still to read");
  meter.value = Math.min(1, backlog / limit);
  setText(after, bytes(backlog) + " of " + bytes(limit) + (waits ? ": ingest waits for training" : ""));
}
