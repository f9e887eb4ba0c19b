/* ---- line charts with a cursor that all charts of one axis share ---- */

const CHART_HEIGHT = 152, MARGIN_TOP = 8, MARGIN_BOTTOM = 20, MARGIN_RIGHT = 10;
/* Where the cursor of an axis stands (null: at the latest value), and the charts that follow it. */
const AXES = {
  step: { at: null, charts: [], text: value => "step " + number(Math.round(value)) },
  time: { at: null, charts: [], text: value => moment(value) },
};
const look = index => " s" + index % 8 + (index >= 8 ? " d" + Math.min(3, Math.floor(index / 8)) : "");
/* A value of a map by key, made when it is asked for the first time. */
const at = (map, key, make) => { if (!map.has(key)) map.set(key, make()); return map.get(key); };

class Chart {
  /* options: {title, unit, axis: "step" | "time", format, least: the axis begins there at the latest, greatest, log: may be logarithmic} */
  constructor(parent, options) {
    this.options = options;
    this.axis = AXES[options.axis];
    this.axis.charts.push(this);
    this.series = [];
    this.when = element("span", { class: "at" });
    this.plot = element("div", {
      class: "plot", tabindex: "0", role: "slider", "aria-orientation": "horizontal",
      "aria-label": options.title + " by " + options.axis + ". Arrow keys move the cursor, Escape takes it away.",
    });
    this.svg = shape("svg", { "aria-hidden": "true" });
    this.legend = element("ul", { class: "legend", "aria-hidden": "true" });
    const unit = element("span", { class: "unit" }, options.unit ? " " + options.unit : "");
    this.plot.append(this.svg);
    this.figure = element("figure", { class: "card chart" },
      element("figcaption", {}, element("span", {}, options.title, unit), this.when), this.plot, this.legend);
    parent.append(this.figure);
    this.plot.addEventListener("keydown", event => this.key(event));
    for (const name of ["pointermove", "pointerdown"]) this.plot.addEventListener(name, event => this.point(event));
    this.plot.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") this.move(null); });
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  /* series: [{name, xs, ys, low, high, index: its colour}]; gap: a distance on the axis that no line bridges; limit: {name, value}. */
  show(series, { gap, limit, domain } = {}) {
    this.series = series.filter(one => one.ys.some(isNumber));
    Object.assign(this, { gap, limit, domain });
    this.figure.hidden = this.series.length === 0;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (this.figure.hidden || !this.series.length || width < 40) return;
    this.scale(width);
    const parts = [...this.grid(), ...this.series.flatMap(one => this.lines(one))];
    if (this.limit && isNumber(this.limit.value)) {
      const y = this.y(this.limit.value);
      parts.push(shape("line", { class: "limit", x1: this.left, x2: this.right, y1: y, y2: y }));
    }
    this.svg.setAttribute("viewBox", "0 0 " + width + " " + CHART_HEIGHT);
    this.cursor = shape("g");
    this.svg.replaceChildren(...parts, this.cursor);
    this.read();
  }

  /* Finds the ranges of both axes, and the maps from values to pixels. */
  scale(width) {
    const values = this.series.flatMap(one => [one.ys, one.low || [], one.high || []]).flat().filter(isNumber);
    if (this.limit && isNumber(this.limit.value)) values.push(this.limit.value);
    const { least, greatest, log, format } = this.options;
    let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    this.log = Boolean(log) && low > 0 && high / low > 30;
    if (isNumber(least) && !this.log) low = Math.min(low, least);
    if (isNumber(greatest)) high = Math.max(high, greatest);
    if (low === high) { low -= Math.abs(low) * 0.05 || 0.5; high += Math.abs(high) * 0.05 || 0.5; }
    const spare = this.log ? 0 : (high - low) * 0.05;
    if (!(isNumber(least) && low === least)) low -= spare;
    if (!(isNumber(greatest) && high === greatest)) high += spare;
    const map = this.log ? Math.log10 : value => value;
    this.marks = this.log
      ? ticks(Math.floor(map(low)), Math.ceil(map(high)), 5).filter(Number.isInteger).map(power => 10 ** power).filter(mark => mark >= low && mark <= high)
      : ticks(low, high, 4, format === bytes);
    if (this.marks.length === 0) this.marks = [low, high];
    this.mark = this.log ? brief : markText(format, this.marks);
    this.left = 12 + 6.4 * Math.max(...this.marks.map(mark => this.mark(mark).length));
    this.right = width - MARGIN_RIGHT;
    const bottom = CHART_HEIGHT - MARGIN_BOTTOM;
    this.y = value => bottom - (bottom - MARGIN_TOP) * (map(value) - map(low)) / (map(high) - map(low));
    const ends = this.domain || [Math.min(...this.series.map(one => one.xs[0])), Math.max(...this.series.map(one => one.xs[one.xs.length - 1]))];
    this.ends = ends[0] < ends[1] ? ends : [ends[0] - 1, ends[0] + 1];
    this.x = value => this.left + (this.right - this.left) * (value - this.ends[0]) / (this.ends[1] - this.ends[0]);
    this.value = pixel => this.ends[0] + (this.ends[1] - this.ends[0]) * (pixel - this.left) / (this.right - this.left);
  }

  grid() {
    const { axis } = this.options, base = CHART_HEIGHT - 5;
    const across = this.marks.flatMap(mark => {
      const y = this.y(mark);
      return [shape("line", { class: mark === 0 ? "zero" : "tick", x1: this.left, x2: this.right, y1: y, y2: y }),
        shape("text", { x: this.left - 5, y: y + 4, "text-anchor": "end" }, this.mark(mark))];
    });
    const room = Math.max(2, Math.floor((this.right - this.left) / 70));
    const times = axis === "time";
    const values = times ? timeTicks(...this.ends, room) : ticks(...this.ends, room + 1).filter(Number.isInteger);
    const short = this.ends[1] - this.ends[0] < 240 ? clock : minute;
    return [...across, ...values.map(value => {
      const text = times ? short(value) : compact(value);
      const x = Math.max(this.left, Math.min(this.x(value), this.right - 3 * text.length));
      return shape("text", { x, y: base, "text-anchor": "middle" }, text);
    })];
  }

  lines(one) {
    const parts = [];
    const line = new Pen(this.x, this.y, this.gap);
    one.xs.forEach((x, index) => line.to(x, one.ys[index]));
    if (one.low && one.high && one.xs.length > 1) {
      const edge = (values, order) => order.filter(index => isNumber(values[index]))
        .map(index => this.x(one.xs[index]).toFixed(1) + " " + this.y(values[index]).toFixed(1));
      const forth = one.xs.map((_, index) => index);
      const around = [...edge(one.high, forth), ...edge(one.low, forth.reverse())];
      if (around.length > 3) parts.push(shape("path", { class: "band f" + one.index % 8, d: "M" + around.join("L") + "Z" }));
    }
    parts.push(shape("path", { class: "series" + look(one.index), d: line.path }));
    for (const [x, y] of line.lonely) parts.push(shape("circle", { class: "f" + one.index % 8, cx: x, cy: y, r: 2.2 }));
    return parts;
  }

  /* Writes what is under the cursor, or the latest values. */
  read() {
    const { at } = this.axis, x = at === null ? this.ends[1] : Math.max(this.ends[0], Math.min(at, this.ends[1]));
    const found = this.series.map(one => ({ ...one, place: nearest(one, x, at === null ? Infinity : this.gap || Infinity) }));
    const shown = found.map(one => [one, one.place < 0 ? null : one.ys[one.place]]);
    const first = found.find(one => one.place >= 0);
    const here = at === null || !first ? x : first.xs[first.place];
    setText(this.when, this.axis.text(here));
    const { format } = this.options;
    keyed(this.legend, shown, ([one]) => one.name,
      ([one]) => element("li", {},
        shape("svg", {}, shape("line", { class: "series" + look(one.index), x1: 0, x2: 18, y1: 4, y2: 4, "stroke-width": 2.4 })),
        element("span", { class: "label" }, one.name), element("span", { class: "value" })),
      (node, [, value]) => setText(node.lastElementChild, format(value)));
    this.cursor.replaceChildren();
    if (at !== null && first) {
      const pixel = this.x(here);
      this.cursor.append(shape("line", { class: "cursor", x1: pixel, x2: pixel, y1: MARGIN_TOP, y2: CHART_HEIGHT - MARGIN_BOTTOM }));
      for (const [one, value] of shown) {
        if (isNumber(value)) this.cursor.append(shape("circle", { class: "dot f" + one.index % 8, cx: this.x(one.xs[one.place]), cy: this.y(value), r: 3.4 }));
      }
    }
    const text = shown.map(([one, value]) => one.name + " " + format(value)).join(", ");
    const attributes = { "aria-valuemin": Math.round(this.ends[0]), "aria-valuemax": Math.round(this.ends[1]), "aria-valuenow": Math.round(here),
      "aria-valuetext": this.axis.text(here) + ": " + text };
    for (const [name, value] of Object.entries(attributes)) this.plot.setAttribute(name, value);
  }

  move(at) {
    this.axis.at = at;
    for (const chart of this.axis.charts) if (!chart.figure.hidden && chart.y && chart.plot.clientWidth) chart.read();
  }

  point(event) {
    if (this.x) this.move(this.value(event.clientX - this.plot.getBoundingClientRect().left));
  }

  key(event) {
    if (!this.x || event.ctrlKey || event.altKey || event.metaKey) return;
    const longest = this.series.reduce((a, b) => b.xs.length > a.xs.length ? b : a);
    const last = longest.xs.length - 1, from = this.axis.at === null ? last : nearest(longest, this.axis.at, Infinity);
    const leap = Math.max(1, Math.round(last / 10));
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowDown: from - 1, ArrowUp: from + 1, PageDown: from - leap, PageUp: from + leap, Home: 0, End: last }[event.key];
    if (to === undefined && event.key !== "Escape") return;
    event.preventDefault();
    this.move(event.key === "Escape" ? null : longest.xs[Math.max(0, Math.min(to, last))]);
  }
}

/* How the marks of an axis are written: with as many decimals as tell them apart. */
function markText(format, marks) {
  const factor = format === percent ? 100 : 1, step = factor * (marks.length > 1 ? marks[1] - marks[0] : marks[0]);
  if (format === small) return brief;
  if (![nats, percent, signed].includes(format)) return format;
  const decimals = Math.max(0, Math.min(4, -Math.floor(Math.log10(Math.abs(step) || 1) + 1e-9)));
  const off = Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6 ? 1 : 0;
  const unit = format === nats ? "" : " %";
  return value => (factor * value).toFixed(decimals + off).replace("-", "−") + unit;
}

/* A line with gaps; points without a neighbour are kept apart. */
class Pen {
  constructor(x, y, gap) {
    Object.assign(this, { x, y, gap: gap || Infinity, path: "", lonely: [], last: null, length: 0 });
  }

  to(x, y) {
    if (!isNumber(y)) return this.lift();
    if (this.last !== null && x - this.last > this.gap) this.lift();
    const [left, top] = [this.x(x).toFixed(1), this.y(y).toFixed(1)];
    this.path += (this.length ? "L" : "M") + left + " " + top;
    this.length++;
    this.last = x;
    if (this.length === 1) this.lonely.push([left, top]);
    else if (this.length === 2) this.lonely.pop();
  }

  lift() {
    this.length = 0;
    this.last = null;
  }
}

/* Index of the value nearest to x that is there, −1 if none is within `reach`. */
function nearest(one, x, reach) {
  let low = 0, high = one.xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (one.xs[middle] < x) low = middle + 1; else high = middle;
  }
  for (let off = 0; off <= one.xs.length; off++) {
    const near = [low - off, low + off].filter(index => isNumber(one.ys[index]));
    if (near.length) {
      near.sort((a, b) => Math.abs(one.xs[a] - x) - Math.abs(one.xs[b] - x));
      return Math.abs(one.xs[near[0]] - x) <= reach ? near[0] : -1;
    }
  }
  return -1;
}
