// The review page. All state that matters is on the server; what is pending here is shown as such.

const byId = (name) => document.getElementById(name);
let token = document.querySelector("meta[name=cvp-token]").content;
const SVG = "http://www.w3.org/2000/svg";
const PAGE = 50; // items fetched at a time
const AHEAD = 4; // pictures loaded before they are needed
const STRIP = 24;

const state = {
  session: null,
  items: new Map(), // place -> item
  at: 0,
  whole: false,
  mask: true,
  others: true,
  fix: null, // {box, class} while fixing
  pending: [], // decisions that are not yet on disk, oldest first
  sending: false,
};

// -- talking to the server ---------------------------------------------------------------------------

async function call(path, body, again = true) {
  const options = { headers: { "X-CVP-Token": token } };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.status === 403 && again) {
    // The server was started anew, with another token, which its page tells us and nobody else.
    const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    token = page.querySelector("meta[name=cvp-token]").content;
    return call(path, body, false);
  }
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error || answer.statusText), { status: answer.status });
  return content;
}

async function load(place) {
  if (place < 0 || place >= state.session.progress.total || state.items.has(place)) return;
  const from = Math.max(0, place - 5);
  const { items } = await call(`/api/items?from=${from}&count=${PAGE}`);
  for (const item of items) if (!state.items.has(item.number)) state.items.set(item.number, item);
}

// Decisions go out one after the other, in the order in which they were made.
async function send() {
  if (state.sending) return;
  state.sending = true;
  while (state.pending.length) {
    const next = state.pending[0];
    showSaving();
    try {
      const answer = next.undo ? await call("/api/undo", {}) : await call("/api/decisions", next.body);
      state.pending.shift();
      state.session.progress = answer.progress;
      if (!next.undo) {
        next.item.said = { ...next.said, verdict: answer.verdict, saved: true };
      } else {
        await undone(answer.key);
      }
      byId("alarm").hidden = true;
      showProgress();
      showStrip();
      if (state.items.get(state.at) === next.item) showVerdict(next.item);
    } catch (error) {
      state.sending = false;
      if (error.status === 422 && !next.undo) {
        state.pending.shift();
        next.item.said = next.before;
        go(next.item.number);
        alarm(error.message, false);
        continue;
      }
      alarm(error.status ? error.message : "Not saved: the review server does not answer. Start cvp review again.", true);
      showSaving();
      return;
    }
  }
  state.sending = false;
  showSaving();
}

async function undone(key) {
  if (!key) return;
  const found = [...state.items.values()].find((item) => item.key === key);
  state.items.clear();
  const place = found ? found.number : state.at;
  await load(place);
  await go(place);
}

// -- deciding ----------------------------------------------------------------------------------------

const current = () => state.items.get(state.at);

function decide(verdict, change = {}) {
  const item = current();
  if (!item || !byId("alarm").hidden) return;
  const said = { verdict, class: change.class ?? item.class, box: change.box ?? item.box, saved: false };
  state.pending.push({ item, said, before: item.said, body: { key: item.key, verdict, ...change } });
  item.said = said;
  state.fix = null;
  send();
  step(1, true);
}

function startFix(name) {
  const item = current();
  if (!item) return;
  const base = item.said && item.said.verdict !== "no" ? item.said : item;
  state.fix ??= { box: base.box ? [...base.box] : null, class: base.class };
  if (name) state.fix.class = name;
  show();
}

function saveFix() {
  const item = current();
  const { box, class: name } = state.fix;
  decide("fix", { class: name, ...(item.box ? { box } : {}) });
}

function undo() {
  if (!byId("alarm").hidden) return;
  if (state.fix) return cancelFix();
  state.pending.push({ undo: true, item: null });
  send();
}

function cancelFix() {
  state.fix = null;
  show();
}

// -- moving ------------------------------------------------------------------------------------------

async function go(place) {
  const total = state.session.progress.total;
  state.at = Math.max(0, Math.min(place, total));
  state.fix = null;
  state.whole = false;
  try {
    await load(state.at);
  } catch (error) {
    alarm(error.status ? error.message : "The review server does not answer. Start cvp review again.", true);
    return;
  }
  show();
  for (let ahead = 1; ahead <= AHEAD; ahead++) {
    const next = state.items.get(state.at + ahead);
    if (next) new Image().src = picture(next, "near");
  }
  if (!state.items.has(state.at + AHEAD)) load(state.at + AHEAD).then(showStrip, () => {});
}

function step(by, open = false) {
  let place = state.at + by;
  // After an answer, what has been answered before need not be shown again.
  while (open && state.items.get(place)?.said) place += by;
  go(place);
}

// -- showing -----------------------------------------------------------------------------------------

const picture = (item, view) => `/picture/${item.key}/${view}`;

function show() {
  const item = current();
  byId("main").hidden = !item;
  byId("done").hidden = Boolean(item);
  if (!item) return showDone();
  const fixing = Boolean(state.fix);
  byId("stage").classList.toggle("fixing", fixing);
  byId("answers").hidden = fixing;
  byId("fixing").hidden = !fixing;
  byId("how").hidden = !fixing;
  const several = state.session.classes.length > 1;
  byId("classes").hidden = !several;
  byId("how").textContent = [
    item.box ? "Drag the box or its corners, or draw a new one." : "",
    several ? "Choose another class below." : "",
  ].join(" ");
  const name = (state.fix ?? item).class;
  const question = byId("question");
  const strong = document.createElement("em");
  strong.textContent = words(name);
  question.replaceChildren(fixing ? "This is " : item.box ? "Is this " : "Is this picture ", strong, fixing ? "" : "?");
  byId("reason").textContent = item.reason;
  byId("meter-score").style.width = `${100 * item.score}%`;
  byId("meter-threshold").hidden = item.threshold === null;
  byId("meter-threshold").style.left = `${100 * (item.threshold ?? 0)}%`;
  const needed = item.threshold === null ? "no threshold" : `needs ${item.threshold.toFixed(2)}`;
  byId("numbers").textContent = `score ${item.score.toFixed(2)}, ${needed}, by ${item.producer}`;
  byId("file").textContent = `${item.batch} / ${item.file}`;
  for (const button of byId("classes").children) {
    button.setAttribute("aria-pressed", String(button.dataset.name === name));
  }
  byId("back").disabled = state.at === 0;
  byId("mask-toggle").hidden = !item.masked;
  byId("mask-toggle").setAttribute("aria-pressed", String(state.mask));
  byId("others-toggle").setAttribute("aria-pressed", String(state.others));
  byId("others-toggle").hidden = !item.box;
  byId("view").hidden = !item.box;
  byId("view-name").textContent = state.whole ? "Close up" : "Whole photo";
  showPhoto(item);
  showVerdict(item);
  showStrip();
  showProgress();
}

const words = (name) => name.replaceAll("_", " ");
const part = (item) => (state.whole ? [0, 0, item.width, item.height] : item.near);

function showPhoto(item) {
  const view = state.whole ? "whole" : "near";
  const photo = byId("photo");
  const address = picture(item, view);
  if (photo.getAttribute("src") !== address) {
    photo.src = address;
    byId("broken").hidden = true;
    byId("frame").hidden = false;
  }
  photo.alt = `${words(item.class)} in ${item.file}`;
  const shade = byId("mask");
  shade.hidden = !(item.masked && state.mask && !state.fix);
  if (!shade.hidden) shade.src = `/mask/${item.key}/${view}`;
  fit(item);
  draw(item);
}

function fit(item) {
  const [, , width, height] = part(item);
  const stage = byId("stage").getBoundingClientRect();
  const scale = Math.min(stage.width / width, stage.height / height) || 1;
  const frame = byId("frame").style;
  frame.width = `${width * scale}px`;
  frame.height = `${height * scale}px`;
  byId("overlay").setAttribute("viewBox", part(item).join(" "));
  state.scale = scale;
}

function rect(kind, [x1, y1, x2, y2], more = {}) {
  const made = document.createElementNS(SVG, "rect");
  made.setAttribute("class", kind);
  const place = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), ...more };
  for (const [key, value] of Object.entries(place)) made.setAttribute(key, value);
  return made;
}

const HANDLES = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]];
const CURSORS = ["nwse", "ns", "nesw", "ew", "nwse", "ns", "nesw", "ew"];

function draw(item) {
  const marks = [];
  if (state.others && item.others && !state.fix) for (const o of item.others) marks.push(rect(`other ${o.status}`, o.box));
  if (item.box && state.others && !item.others) fetchOthers(item);
  const left = state.fix ?? (item.said && item.said.verdict === "fix" ? item.said : item);
  if (left !== item && item.box) marks.push(rect("before", item.box));
  if (left.box) marks.push(rect("halo", left.box), rect("box", left.box));
  if (state.fix && left.box) {
    marks.push(rect("body", left.box, { "data-part": "body" }));
    const [x1, y1, x2, y2] = left.box;
    const size = 13 / state.scale;
    HANDLES.forEach(([a, b], i) => {
      const x = x1 + a * (x2 - x1), y = y1 + b * (y2 - y1);
      const handle = rect("handle", [x - size / 2, y - size / 2, x + size / 2, y + size / 2], { rx: size / 4 });
      handle.dataset.part = i;
      handle.style.cursor = `${CURSORS[i]}-resize`;
      marks.push(handle);
    });
  }
  byId("overlay").replaceChildren(...marks);
}

async function fetchOthers(item) {
  item.others = [];
  try {
    const rows = await call(`/api/others/${item.key}`);
    item.others = rows.map((r) => ({ box: [r.x1, r.y1, r.x2, r.y2], status: r.status, class: r.class_name }));
    if (current() === item) draw(item);
  } catch {
    item.others = null; // asked for again when the item is shown again
  }
}

function showVerdict(item) {
  const said = item?.said;
  const badge = byId("verdict");
  badge.hidden = !said || Boolean(state.fix);
  for (const name of ["yes", "no", "fix"]) byId(name).classList.toggle("said", said?.verdict === name);
  if (!said) return;
  badge.className = `verdict ${said.verdict}`;
  const what = said.verdict === "fix" && said.class !== item.class ? `fixed: ${words(said.class)}` : said.verdict;
  badge.textContent = `You said ${what}`;
}

function showProgress() {
  const { total, done, yes, no, fix } = state.session.progress;
  const share = (count) => `${total ? (100 * count) / total : 0}%`;
  byId("bar-yes").style.width = share(yes);
  byId("bar-fix").style.width = share(fix);
  byId("bar-no").style.width = share(no);
  byId("count").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")}`;
  byId("progress").setAttribute("aria-valuemax", total);
  byId("progress").setAttribute("aria-valuenow", done);
}

function showSaving() {
  const waiting = state.pending.length;
  byId("saved").textContent = waiting ? `saving ${waiting}…` : state.session.progress.done ? "saved" : "";
}

function showStrip() {
  const strip = byId("strip");
  const first = Math.max(0, state.at - 4);
  const shown = [];
  for (let place = first; place < first + STRIP; place++) {
    const item = state.items.get(place);
    if (!item) continue;
    const old = strip.querySelector(`[data-key="${item.key}"]`);
    const button = old ?? document.createElement("button");
    if (!old) {
      button.dataset.key = item.key;
      button.title = `${words(item.class)}, ${item.file}`;
      const small = document.createElement("img");
      small.src = picture(item, "thumb");
      small.alt = "";
      small.loading = "lazy";
      small.addEventListener("error", () => small.remove());
      button.append(small, document.createElement("i"));
      button.addEventListener("click", () => go(item.number));
    }
    button.className = [item.said?.verdict ?? "", place === state.at ? "now" : ""].join(" ");
    button.lastChild.hidden = !item.said || item.said.saved === false; // a dot means: on disk
    shown.push(button);
  }
  strip.replaceChildren(...shown);
}

function showDone() {
  const { total, done } = state.session.progress;
  const open = total - done - state.pending.filter((p) => !p.undo).length;
  byId("done-title").textContent = !total ? "Nothing waits for a person" : open > 0 ? "The end of the queue" : "All done";
  const code = document.createElement("code");
  code.textContent = `cvp run ${state.session.project}`;
  const skipped = open > 0 ? `${open} you have skipped. ` : "";
  byId("done-text").replaceChildren(`${skipped}To put decisions into the labels: `, code);
  byId("done-back").hidden = !total;
  showProgress();
}

function alarm(text, lasting) {
  byId("alarm-text").textContent = text;
  byId("retry").hidden = !lasting;
  byId("alarm").hidden = false;
  if (!lasting) setTimeout(() => { if (byId("retry").hidden) byId("alarm").hidden = true; }, 4000);
}

// -- fixing with the pointer -------------------------------------------------------------------------

let drag = null;

function point(event) {
  const frame = byId("frame").getBoundingClientRect();
  const [x, y, width, height] = part(current());
  return [x + ((event.clientX - frame.left) / frame.width) * width, y + ((event.clientY - frame.top) / frame.height) * height];
}

function within(item, [x1, y1, x2, y2]) {
  const cut = (v, high) => Math.min(Math.max(v, 0), high);
  const box = [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
  return [cut(box[0], item.width), cut(box[1], item.height), cut(box[2], item.width), cut(box[3], item.height)];
}

function shifted(item, [x1, y1, x2, y2], dx, dy) {
  dx = Math.min(Math.max(dx, -x1), item.width - x2);
  dy = Math.min(Math.max(dy, -y1), item.height - y2);
  return [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
}

byId("stage").addEventListener("pointerdown", (event) => {
  const item = current();
  if (!state.fix || !item?.box || event.button !== 0 || event.target.closest("button")) return;
  event.preventDefault();
  drag = { part: event.target.dataset.part ?? "new", from: point(event), box: [...state.fix.box], moved: false };
  byId("stage").setPointerCapture(event.pointerId);
});

byId("stage").addEventListener("pointermove", (event) => {
  if (!drag || !state.fix) return;
  const item = current();
  const [x, y] = point(event);
  const dx = x - drag.from[0], dy = y - drag.from[1];
  if (!drag.moved && Math.hypot(dx, dy) * state.scale < 3) return; // a click is no change
  drag.moved = true;
  if (drag.part === "new") {
    state.fix.box = within(item, [drag.from[0], drag.from[1], x, y]);
  } else if (drag.part === "body") {
    state.fix.box = shifted(item, drag.box, dx, dy);
  } else {
    const [a, b] = HANDLES[Number(drag.part)];
    const box = [...drag.box];
    if (a !== 0.5) box[a === 0 ? 0 : 2] += dx;
    if (b !== 0.5) box[b === 0 ? 1 : 3] += dy;
    state.fix.box = within(item, box);
  }
  draw(item);
});

for (const kind of ["pointerup", "pointercancel"]) {
  byId("stage").addEventListener(kind, () => {
    if (!drag) return;
    const [x1, y1, x2, y2] = state.fix?.box ?? drag.box;
    if (state.fix && (x2 - x1 < 1 || y2 - y1 < 1)) state.fix.box = drag.box;
    drag = null;
    if (current()) draw(current());
  });
}

function nudge(event) {
  const item = current();
  if (!item.box) return;
  const size = event.shiftKey ? 10 : 1;
  const [dx, dy] = { ArrowLeft: [-size, 0], ArrowRight: [size, 0], ArrowUp: [0, -size], ArrowDown: [0, size] }[event.key];
  const box = state.fix.box;
  state.fix.box = event.altKey
    ? within(item, [box[0], box[1], Math.max(box[2] + dx, box[0] + 1), Math.max(box[3] + dy, box[1] + 1)])
    : shifted(item, box, dx, dy);
  draw(item);
}

// -- keys and buttons --------------------------------------------------------------------------------

const toggle = (name) => () => { state[name] = !state[name]; show(); };
const KEYS = {
  y: () => !state.fix && decide("yes"),
  n: () => !state.fix && decide("no"),
  f: () => startFix(),
  u: undo,
  w: () => current()?.box && toggle("whole")(),
  m: toggle("mask"),
  o: toggle("others"),
  Escape: () => state.fix && cancelFix(),
  Enter: () => state.fix && saveFix(),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (!state.session || event.ctrlKey || event.metaKey || byId("help").open) return;
  if (event.key.startsWith("Arrow") && state.fix) {
    event.preventDefault();
    return nudge(event);
  }
  if (event.altKey) return;
  const digit = /^[1-9]$/.test(event.key) ? state.session.classes[Number(event.key) - 1] : null;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const act = digit ? () => startFix(digit) : KEYS[key];
  if (!act || (event.repeat && !key.startsWith("Arrow"))) return;
  event.preventDefault();
  if (document.activeElement instanceof HTMLButtonElement) document.activeElement.blur();
  act();
});

const CLICKS = {
  yes: KEYS.y, no: KEYS.n, fix: KEYS.f, save: saveFix, cancel: cancelFix, undo, view: KEYS.w,
  "mask-toggle": KEYS.m, "others-toggle": KEYS.o, skip: KEYS.ArrowRight, back: KEYS.ArrowLeft,
  "done-back": KEYS.ArrowLeft, "help-open": KEYS["?"],
  retry: () => { byId("alarm").hidden = true; state.pending.length ? send() : go(state.at); },
};
for (const [name, act] of Object.entries(CLICKS)) byId(name).addEventListener("click", act);

byId("photo").addEventListener("error", async () => {
  const address = byId("photo").src;
  let why = "The picture cannot be read.";
  try {
    why = `The picture cannot be read: ${(await (await fetch(address)).json()).error}`;
  } catch { /* the server does not answer, which the next decision will say */ }
  if (byId("photo").src !== address) return;
  byId("frame").hidden = true;
  byId("broken").textContent = `${why} Skip it with →.`;
  byId("broken").hidden = false;
});

new ResizeObserver(() => { if (state.session && current()) { fit(current()); draw(current()); } }).observe(byId("stage"));
addEventListener("beforeunload", (event) => { if (state.pending.length) event.preventDefault(); });

async function start() {
  try {
    state.session = await call("/api/session");
  } catch (error) {
    return alarm(error.status ? error.message : "The review server does not answer.", false);
  }
  byId("who").textContent = `reviewed by ${state.session.reviewer}`;
  state.session.classes.forEach((name, i) => {
    const button = document.createElement("button");
    button.dataset.name = name;
    button.append(words(name));
    if (i < 9) {
      const key = document.createElement("kbd");
      key.textContent = i + 1;
      button.append(key);
    }
    button.addEventListener("click", () => startFix(name));
    byId("classes").append(button);
  });
  showProgress();
  await go(state.session.progress.first);
}

start();
