/* ---- teachers, corpora, log, inboxes, quarantine, releases, changes, events ---- */

const TEACHER_LOOKS = { labelling: "good", waiting: "warn", stalled: "bad", lost: "bad", paused: "warn" };
const CORPUS_LOOKS = { reading: "good", paused: "warn" };

function showTeachers(status) {
  const teachers = Object.entries(status.teachers || {});
  $("teachers-section").hidden = teachers.length === 0;
  const rows = teachers.map(([name, teacher]) => {
    const state = teacher.labels === false ? "lends its tokenizer" : teacher.paused ? "paused" : teacher.state || NONE;
    const since = isNumber(teacher.since_unix_seconds) && ["waiting", "stalled", "lost"].includes(state) ? " for " + duration(daemonNow() - teacher.since_unix_seconds) : "";
    return { key: name, teacher, cells: [[name], [(teacher.languages || []).join(", "), "name wide"], [state + since, "name " + (TEACHER_LOOKS[state] || "soft")],
      [isNumber(teacher.tokens_per_second) ? compact(teacher.tokens_per_second) : NONE], [number(teacher.dropped_copies), teacher.dropped_copies ? "warn" : ""]] };
  });
  showTable($("teachers"), rows, (cell, { key, teacher }) => pauseButton(cell, teacher.labels !== false
    && { name: "teacher " + key, paused: Boolean(teacher.paused), path: "teachers/" + encodeURIComponent(key) + "/" }));
}

function showWorkers(status) {
  const workers = status.workers || [];
  $("workers-section").hidden = workers.length === 0;
  const rows = workers.map(worker => {
    const state = worker.silent ? "silent" : worker.in_flight ? "labelling" : "idle";
    return { key: worker.worker, cells: [[worker.worker], [worker.teacher, "name"], [worker.device, "name"],
      [state, "name " + (worker.silent ? "bad" : TEACHER_LOOKS[state] || "soft")], [compact(worker.tokens_per_second)], [number(worker.batches)],
      [number(worker.in_flight)], [duration(Math.max(0, daemonNow() - worker.seen_unix_seconds)) + " ago"]] };
  });
  showTable($("workers"), rows, () => {});
}

function showCorpora(status) {
  const corpora = listOfCorpora(status), drawn = corpora.filter(corpus => !corpus.evaluation_only);
  const all = sum(drawn, "examples");
  $("corpora-section").hidden = corpora.length === 0;
  const overridden = new Set(((status.corpora || {}).languages || []).filter(language => language.overridden).map(language => language.language));
  const rows = corpora.map(corpus => {
    const { name, language, evaluation_only: evaluates } = corpus;
    return { key: name + "\n" + language, corpus, cells: [[name], [language + (overridden.has(language) ? " (share set by hand)" : ""), "name"],
      [corpus.state + (evaluates ? ", for evaluation" : ""), "name " + (CORPUS_LOOKS[corpus.state] || "soft")],
      [evaluates ? NONE : percent(corpus.share)], [evaluates || !all ? NONE : percent(corpus.examples / all)],
      [compact(corpus.characters_available)], [number(corpus.documents)], [number(corpus.examples)], [number(corpus.skipped)],
      [number(corpus.quarantined), corpus.quarantined ? "warn" : ""], [number(corpus.round)]] };
  });
  showTable($("corpora"), rows, (cell, { corpus }) => pauseButton(cell, corpus.state !== "ended" && !corpus.evaluation_only
    && { name: "corpus " + corpus.name, paused: corpus.state === "paused", path: "corpora/" + encodeURIComponent(corpus.name) + "/" }));
}

function showLog(status) {
  const log = status.log || {}, arrival = status.arrival_to_gradient || {};
  const behind = isNumber(log.appended) && isNumber(log.durable) ? Math.max(0, log.appended - log.durable) : null;
  const { retain_bytes: most, retain_hours: hours } = status.retention || {};
  const retention = [most > 0 && bytes(most), hours > 0 && duration(3600 * hours)].filter(Boolean).join(", ");
  showFacts($("log"), [
    ["Size on disk", bytes(log.bytes)], ["Segments", number(log.segments)],
    ["Entries kept", isNumber(log.durable) ? number(log.durable - (log.begin || 0)) : NONE],
    ["Removed by retention", number(log.begin) + " entries"], ["Kept, at most", retention || "all"],
    ["Durable up to entry", number(log.durable)], ["Written, not yet durable", behind === null ? null : plural(behind, "entry", "entries")],
    isNumber(log.backlog_bytes) ? ["Backlog", bytes(log.backlog_bytes) + (log.max_backlog_bytes ? " of " + bytes(log.max_backlog_bytes) : "")] : null,
    ["Arrival → first gradient, median", isNumber(arrival.p50_seconds) ? duration(arrival.p50_seconds) : null],
    ["Arrival → first gradient, 99 %", isNumber(arrival.p99_seconds) ? duration(arrival.p99_seconds) : null],
    arrival.records ? ["Records it was measured on", number(arrival.records)] : null,
  ]);
}

function showInboxes(status) {
  const inboxes = Object.entries(status.inboxes || {}).filter(([name, inbox]) => name !== "retry" || inbox.documents || inbox.unread_bytes || inbox.failed);
  $("inboxes-section").hidden = inboxes.length === 0;
  showTable($("inboxes"), inboxes.map(([name, inbox]) => ({ key: name, cells: [[name + (inbox.failed ? ": " + inbox.failed : ""), inbox.failed ? "bad" : ""],
    [number(inbox.documents)], [bytes(inbox.unread_bytes) + " of " + bytes(inbox.limit_bytes)], [plural(inbox.waiting_batches, "batch", "batches")]] })));
}

function showQuarantine(status) {
  const quarantine = status.quarantine || {}, corpora = listOfCorpora(status), count = sum(corpora, "quarantined");
  const reasons = Object.entries(quarantine.reasons || {}).filter(([, found]) => found > 0);
  $("quarantine-section").hidden = !(count || reasons.length || quarantine.bytes);
  showFacts($("quarantine"), [["Since this start", plural(count, "document"), count ? "warn" : ""],
    ...reasons.map(([reason, found]) => [reason.replaceAll("_", " "), number(found)]),
    isNumber(quarantine.bytes) ? ["Room that the notes take", bytes(quarantine.bytes)] : null,
    quarantine.dropped ? ["Notes dropped for want of room", number(quarantine.dropped), "warn"] : null]);
}

function showRelease(status) {
  const { release } = status;
  $("release-section").hidden = !isObject(release);
  if (!isObject(release)) return;
  const looks = { running: "good", failed: "bad", cancelled: "warn" };
  showFacts($("release"), [["Name", release.name], ["State", release.state + (release.waiting ? ", waiting for " + release.waiting : ""), looks[release.state]],
    ["Branched at step", number(release.from_step)], ["Steps", number(release.step) + " of " + number(release.steps)],
    ["Loss", isNumber(release.loss) ? nats(release.loss) + " nats" : null], ["Learning rate", small(release.learning_rate)], ["λ", small(release.lambda)],
    ["Student goes to", release.out], release.error ? ["Error", release.error, "bad"] : null]);
}

function describe(change) {
  if (!isObject(change)) return String(change);
  const [kind, about] = typeof change.kind === "string" ? [change.kind, change] : Object.entries(change)[0] || ["", ""];
  const text = value => isObject(value) ? value.name || Object.entries(value).filter(([key]) => key !== "kind").map(([key, inner]) => key + " " + text(inner)).join(", ") : String(value);
  return kind.replaceAll("_", " ") + (about ? ": " + text(about) : "");
}

function showList(list, entries) {
  keyed(list, entries, entry => entry.key, () => element("li", {}, element("time"), element("span")), (node, { unixSeconds, text, look }) => {
    const [time, what] = node.children, at = new Date(1000 * unixSeconds).toISOString();
    if (time.dateTime !== at) time.dateTime = at;
    setText(time, moment(unixSeconds));
    setText(what, text);
    setClass(what, look || "");
  });
}

function showChanges(status) {
  const changes = ((status.corpora || {}).changes || []).slice(-50).reverse();
  $("changes-section").hidden = changes.length === 0;
  showList($("changes"), changes.map(made => ({ key: made.from_sequence + " " + made.at_unix_seconds + JSON.stringify(made.change).slice(0, 80),
    unixSeconds: made.at_unix_seconds, text: describe(made.change) + " (from entry " + number(made.from_sequence) + ")" })));
}

function showWarnings(status) {
  const warnings = (status.warnings || []).slice().reverse();
  $("warnings-section").hidden = warnings.length === 0;
  showList($("warnings"), warnings.map(one => ({ key: one.at_unix_seconds + one.message, unixSeconds: one.at_unix_seconds,
    text: one.message, look: one.level === "error" ? "bad" : "warn" })));
}

const events = [];
let eventKey = 0;

function noteEvent(text, look) {
  events.unshift({ key: eventKey++, unixSeconds: daemonNow(), text, look });
  events.length = Math.min(events.length, 50);
  showList($("events"), events);
}
