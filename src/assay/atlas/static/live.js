"use strict";
// Follows runs: asks the server of this page every second what is being measured, and what was finished.

const make = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
const find = (name) => document.querySelector(`[data-${name}]`);
const number = (value) => (Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)))).replace("-", "−");
const took = (seconds, digits = 3) =>
  seconds < 120 ? `${Number(seconds.toPrecision(digits))} s` : `${Number((seconds / 60).toPrecision(digits))} min`;

const bar = (words, fraction, note) =>
  make(
    "div",
    { className: "bar" },
    make("span", { textContent: words }),
    make("progress", { max: 1, value: fraction, ariaLabel: words }),
    make("span", { className: "soft", textContent: note }),
  );

const run = (state) => {
  const share = state.total ? (state.finished + state.units.reduce((sum, unit) => sum + unit.fraction, 0)) / state.total : 0;
  const since = (Date.now() - Date.parse(state.began)) / 1000;
  const left = share > 0.02 && share < 1 ? `about ${took((since * (1 - share)) / share, 2)} left` : "";
  const whole = bar(`${state.finished} of ${state.total} units`, share, left);
  whole.classList.add("whole");
  return make("div", { className: "run" }, whole, ...state.units.map((unit) => bar(unit.name, unit.fraction, unit.note)));
};

const row = (unit) => {
  const words = `${unit.key}: ${unit.claim.replaceAll("_", " ")}${unit.scale === "laptop" ? "" : ` (${unit.scale})`}`;
  const page = unit.page && `${unit.page}#${encodeURIComponent(unit.claim)}`;
  const values = Object.entries(unit.values).map(([arm, value]) => `${arm} ${number(value)}`).join(", ");
  const finished = new Date(unit.finished).toLocaleString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  const done = unit.status === "done";
  return make(
    "tr",
    {},
    make("td", {}, page ? make("a", { href: page, textContent: words }) : words),
    make("td", { className: "number", textContent: unit.seed }),
    make("td", { className: done ? "soft" : "", textContent: done ? values : `${unit.status}: ${unit.error}` }),
    make("td", { className: "number soft of-took", textContent: took(unit.seconds) }),
    make("td", { className: "number soft of-finished", textContent: finished }),
  );
};

let shown = "";
const look = async () => {
  try {
    const answer = await fetch("live.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    find("runs").replaceChildren(...state.runs.map(run), ...(state.runs.length ? [] : [quiet]));
    const finished = JSON.stringify(state.finished);
    if (finished !== shown) {
      shown = finished;
      find("finished").replaceChildren(...state.finished.map(row));
      find("empty").hidden = state.finished.length > 0;
    }
    find("status").textContent = "";
    setTimeout(look, 1000);
  } catch {
    find("status").textContent = "The server does not answer any more; this is what it said last.";
    setTimeout(look, 5000);
  }
};
const quiet = find("quiet");
look();
