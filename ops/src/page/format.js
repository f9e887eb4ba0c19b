/* ---- numbers, sizes and times as text ---- */

const isNumber = value => typeof value === "number" && Number.isFinite(value);
const isObject = value => value !== null && typeof value === "object" && !Array.isArray(value);
const NONE = "–";

/* Six digits at most; thousands apart. */
function number(value) {
  if (!isNumber(value)) return NONE;
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(2).replace("e-", "e−");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

/* 12,345 → 12.3 k. */
function compact(value, digits = 3) {
  if (!isNumber(value)) return NONE;
  const units = ["", " k", " M", " G", " T"];
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < units.length - 1) { value /= 1000; unit++; }
  if (unit === 0 && Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(digits))) + units[unit];
}

function bytes(value) {
  if (!isNumber(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) { value /= 1024; unit++; }
  return (unit === 0 || Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(1)) + " " + units[unit];
}

function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 1) return Math.round(1000 * seconds) + " ms";
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (hours < 1) return minutes + " min " + Math.floor(seconds % 60) + " s";
  return days < 1 ? hours + " h " + (minutes % 60) + " min" : days + " d " + (hours % 24) + " h";
}

const nats = value => isNumber(value) ? value.toFixed(3) : NONE;
const percent = value => isNumber(value) ? (100 * value).toFixed(1) + " %" : NONE;
const brief = value => String(Number(value.toPrecision(3))).replace("-", "−");
const signed = value => isNumber(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1) + " %" : NONE;
const small = value => isNumber(value) ? (value === 0 ? "0" : value.toPrecision(3).replace("e-", "e−")) : NONE;
const plural = (count, one, many) => number(count) + " " + (count === 1 ? one : many || one + "s");

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const clock = unixSeconds => clockFormat.format(new Date(1000 * unixSeconds));
const minute = unixSeconds => minuteFormat.format(new Date(1000 * unixSeconds));

/* A moment; with its day if that is not today. */
function moment(unixSeconds) {
  const date = new Date(1000 * unixSeconds);
  return date.toDateString() === new Date().toDateString() ? clockFormat.format(date) : dayFormat.format(date);
}

/* About a minute, an hour: for what is an estimate anyway. */
function about(seconds) {
  if (seconds < 90) return Math.max(1, Math.round(seconds / 10)) * 10 + " s";
  if (seconds < 5400) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? (seconds / 3600).toFixed(1) + " h" : (seconds / 86400).toFixed(1) + " days";
}

/* At most `most` round values between low and high; of bytes those are multiples of powers of two. */
function ticks(low, high, most, ofBytes) {
  const rough = (high - low) / Math.max(1, most);
  if (!(rough > 0)) return [low];
  const unit = ofBytes ? 1024 ** Math.max(0, Math.floor(Math.log(rough) / Math.log(1024))) : 1;
  const power = unit * 10 ** Math.floor(Math.log10(rough / unit));
  const step = [1, 2, 2.5, 5, 10, 20].map(factor => factor * power).find(step => step >= rough * 0.999) || rough;
  const values = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) values.push(index * step || 0);
  return values;
}

/* Round times between two moments, in local time. */
function timeTicks(low, high, most) {
  const steps = [5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  const step = steps.find(step => (high - low) / step <= most) || 86400;
  const zone = 60 * new Date(1000 * high).getTimezoneOffset();
  const values = [];
  for (let at = Math.ceil((low - zone) / step) * step + zone; at <= high; at += step) values.push(at);
  return values;
}
