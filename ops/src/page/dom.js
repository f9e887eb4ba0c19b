/* ---- elements ---- */

const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(tag, options, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(options || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/* Sets what has changed alone: what is read out or selected stays. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

/* One child per item, found again by its key, so that focus and selection outlive what is new. */
function keyed(parent, items, key, create, update) {
  const known = new Map([...parent.children].map(node => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let node = known.get(name);
    if (node) known.delete(name);
    else { node = create(item); node.dataset.key = name; }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    update(node, item);
  }
  for (const node of known.values()) node.remove();
}

/* `facts`: [name, text, look]; those without a text are left out. */
function showFacts(list, facts) {
  const shown = facts.filter(fact => fact && fact[1] !== null && fact[1] !== undefined);
  keyed(list, shown.flatMap(fact => [["dt", ...fact], ["dd", ...fact]]), ([tag, name]) => tag + name,
    ([tag]) => element(tag),
    (node, [tag, name, text, look]) => {
      setText(node, tag === "dt" ? name : text);
      if (tag === "dd") setClass(node, look || "");
    });
}

/* `rows`: {key, cells: [[text, class]]}; the first cell is the row's heading. */
function showTable(body, rows, control) {
  keyed(body, rows, row => row.key,
    row => {
      const cells = row.cells.map((cell, index) => index ? element("td") : element("th", { scope: "row" }));
      return element("tr", {}, ...cells, ...(control ? [element("td", { class: "act" })] : []));
    },
    (node, row) => {
      row.cells.forEach(([text, look], index) => {
        setText(node.children[index], text);
        setClass(node.children[index], look || "");
      });
      if (control) control(node.lastElementChild, row);
    });
}
