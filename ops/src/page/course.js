/* ---- the course of training: the history, and what events add to it ---- */

const EXTREMES = ["loss", "grad_norm"];
const STEP_FIGURES = ["loss", "kd", "mlm", "top1", "learning_rate", "lambda", "grad_norm"];
/* More points than this, and the history is asked for again: it comes thinned. */
const COURSE_POINTS = 1000;

const course = {
  steps: { step: [], steps_per_point: 1 },
  evaluations: { step: [], languages: {} },
  releases: [],
  samples: [],
  complete: false,
  /* Steps in the last point that events made; 0: the history made it. */
  open: 0,
};

function takeHistory(history) {
  Object.assign(course, history, { open: 0 });
}

/* A point takes in steps_per_point steps; the last one may still be open. Steps made again replace those before. */
function takeStep(report) {
  const { steps } = course;
  if (!Number.isInteger(report.step)) return;
  for (const name of [...STEP_FIGURES, ...EXTREMES.flatMap(name => [name + "_min", name + "_max"]), "tokens_per_second"]) steps[name] ||= [];
  while (steps.step.length && steps.step[steps.step.length - 1] >= report.step) {
    for (const column of Object.values(steps)) if (Array.isArray(column)) column.length = steps.step.length - 1;
    course.open = 0;
  }
  const size = steps.steps_per_point, last = steps.step.length - 1;
  const point = step => Math.floor((step - 1) / size);
  const joins = course.open > 0 && point(steps.step[last]) === point(report.step);
  const place = joins ? last : last + 1, weight = joins ? course.open : 0;
  steps.step[place] = report.step;
  const mean = (name, value) => {
    const before = weight ? steps[name][place] : null;
    steps[name][place] = isNumber(before) && isNumber(value) ? (before * weight + value) / (weight + 1) : isNumber(value) ? value : before;
  };
  for (const name of STEP_FIGURES) mean(name, report[name]);
  mean("tokens_per_second", report.seconds > 0 ? report.tokens / report.seconds : null);
  for (const name of EXTREMES) {
    const value = report[name];
    const pick = (kind, choose) => {
      const before = weight ? steps[name + kind][place] : null;
      steps[name + kind][place] = isNumber(before) && isNumber(value) ? choose(before, value) : isNumber(value) ? value : before;
    };
    pick("_min", Math.min);
    pick("_max", Math.max);
  }
  course.open = weight + 1;
}

/* Appends an evaluation to the columns; languages and teachers may be new. */
function takeEvaluation(report) {
  const { evaluations } = course;
  if (!isObject(report.languages) || evaluations.step[evaluations.step.length - 1] >= report.step) return;
  const count = evaluations.step.push(report.step);
  const put = (columns, name, value) => {
    columns[name] ||= [];
    while (columns[name].length < count - 1) columns[name].push(null);
    columns[name].push(isNumber(value) ? value : null);
  };
  for (const [name, language] of Object.entries(report.languages)) {
    const columns = evaluations.languages[name] ||= { teachers: {} };
    put(columns, "student_loss", language.student_loss);
    put(columns, "student_top1", language.student_top1);
    for (const [teacher, figures] of Object.entries(language.teachers || {})) {
      const own = columns.teachers[teacher] ||= {};
      for (const figure of ["loss", "top1", "student_loss", "student_top1", "rdt"]) put(own, figure, figures[figure]);
    }
  }
}

/* What is sampled now, behind the samples of the history. */
function takeSample(sample) {
  const [recent] = course.samples;
  if (!recent) return;
  const last = recent.unix_seconds[recent.unix_seconds.length - 1];
  if (sample.unix_seconds - last < recent.seconds) return;
  for (const [name, column] of Object.entries(recent)) {
    if (Array.isArray(column)) {
      column.push(isNumber(sample[name]) ? sample[name] : null);
      if (column.length > 720) column.shift();
    }
  }
}
