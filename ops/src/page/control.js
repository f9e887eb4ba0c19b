/* ---- control: for who has the token ---- */

const TOKEN_KEY = "mergedistill-token";
/* How the daemon lets this page control it: "open", "token" or "no". */
let controlMode = "no";
let busy = false;
const token = () => sessionStorage.getItem(TOKEN_KEY);
const mayControl = () => controlMode === "open" || (controlMode === "token" && Boolean(token()));

function showOutcome(text, look) {
  const box = $("outcome");
  box.hidden = false;
  setClass(box, "outcome " + (look || ""));
  setText(box, clock(Date.now() / 1000) + "  " + text);
}

/* Sends a command, and says what became of it. */
async function send(path, body, done) {
  if (busy) return;
  busy = true;
  const headers = { "Content-Type": "application/json" };
  if (token()) headers.Authorization = "Bearer " + token();
  try {
    const response = await fetch("v1/" + path, { method: "POST", headers, body: JSON.stringify(body || {}) });
    const answer = await response.json().catch(() => ({}));
    if (response.status === 401) {
      sessionStorage.removeItem(TOKEN_KEY);
      showOutcome("The daemon did not accept the token; it is forgotten. Enter it again.", "bad");
    } else if (!response.ok) {
      showOutcome("Not done: " + (isObject(answer.error) ? answer.error.message : "error " + response.status), "bad");
    } else {
      showOutcome(done(answer));
    }
  } catch {
    showOutcome("Not done: the daemon did not answer.", "bad");
  }
  busy = false;
  /* A question that was on its way may be from before. */
  await asking;
  await refresh();
}

/* Puts a button that pauses or resumes into a node, or takes it away. `target`: {name, paused, path, body}. */
function pauseButton(parent, target) {
  let button = parent.querySelector("button");
  if (!target || !mayControl()) {
    if (button) button.remove();
    return;
  }
  if (!button) {
    button = element("button", { type: "button" });
    parent.append(button);
    button.addEventListener("click", () => {
      const { name, paused, path, body } = button.target;
      send(path + (paused ? "resume" : "pause"), body, () => name[0].toUpperCase() + name.slice(1) + (paused ? " resumed." : " paused."));
    });
  }
  button.target = target;
  setText(button, target.paused ? "Resume" : "Pause");
  button.setAttribute("aria-label", (target.paused ? "Resume " : "Pause ") + target.name);
}

function showControl(status) {
  controlMode = typeof status.control === "string" ? status.control : "no";
  $("control").hidden = controlMode === "no";
  const open = mayControl(), paused = status.state === "paused";
  $("control-open").hidden = !open;
  $("lock").hidden = controlMode !== "token";
  $("unlock").hidden = open;
  if (open) { $("token-form").hidden = true; $("unlock").setAttribute("aria-expanded", "false"); }
  setText($("pause-all"), paused ? "Resume all" : "Pause all");
  $("checkpoint").hidden = !isObject(status.train);
}

$("unlock").addEventListener("click", () => {
  const form = $("token-form");
  form.hidden = !form.hidden;
  $("unlock").setAttribute("aria-expanded", String(!form.hidden));
  if (!form.hidden) $("token").focus();
});
$("token-form").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, $("token").value.trim());
  $("token").value = "";
  showOutcome("Control is unlocked until this tab is closed. The token is shown to the daemon with the first command.");
  refresh().then(() => $("pause-all").focus());
});
$("lock").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN_KEY);
  showOutcome("The token is forgotten.");
  refresh().then(() => $("unlock").focus());
});
$("pause-all").addEventListener("click", () => {
  const resumes = $("pause-all").textContent === "Resume all";
  send(resumes ? "resume" : "pause", {}, () => resumes ? "All stages resumed." : "All stages are paused at their next safe point.");
});
$("checkpoint").addEventListener("click", () => send("checkpoint", {}, answer => "Checkpoint written: " + (answer.path || "done") + "."));
