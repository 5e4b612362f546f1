"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const { items, classes } = content;
  const $ = (id) => document.getElementById(id);
  const key = (item) => `assay-answers/${content.queue}/${item.mark}/${item.id}`;
  const whoKey = "assay-answers/who", placeKey = `assay-answers/${content.queue}/place`;

  // Where the browser keeps nothing, answers live as long as the page, and that is said.
  const kept = new Map();
  let unsaved = false;
  const warn = (text) => { $("warning").textContent = text; $("warning").hidden = false; };
  const load = (name) => {
    if (kept.has(name)) return kept.get(name);
    try { return localStorage.getItem(name); } catch { return null; }
  };
  const store = (name, value) => {
    kept.set(name, value);
    try {
      localStorage.setItem(name, value);
      if (localStorage.getItem(name) !== value) throw new Error("not kept");
    } catch {
      unsaved = true;
      warn("This browser keeps nothing (private window, or its storage is full): download your answers before you close the page.");
    }
  };
  store("assay-answers/works", "yes");
  unsaved = false;
  addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

  const answer = (item) => {
    try { return JSON.parse(load(key(item)) ?? "null"); } catch { return null; }
  };
  const stamp = () => new Date().toISOString();

  // ------------------------------------------------------------------------------------------------ keys of classes

  // A class that is one letter or digit has that key, if no action has it; else the first nine have their number.
  const taken = new Set(["k", "b", "o", "s", "z"]);
  const own = classes.every((name) => name.length === 1 && !taken.has(name.toLowerCase()));
  const keyOf = new Map(Object.keys(content.keys).length ? Object.entries(content.keys) : own ? classes.map((name) => [name.toLowerCase(), name]) : classes.slice(0, 9).map((name, at) => [String(at + 1), name]));
  const keyFor = new Map([...keyOf].map(([letter, name]) => [name, letter]));
  if (keyOf.size !== keyFor.size || (own && keyOf.size !== classes.length && !Object.keys(content.keys).length)) { keyOf.clear(); keyFor.clear(); }

  // ------------------------------------------------------------------------------------------------ one question

  const make = (tag, text, parent) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };

  let at = 0, only = null; // `only`: the skipped ones, while these are gone through
  const answered = () => items.filter((item) => answer(item)?.answer !== undefined && answer(item)?.answer !== null).length;
  const skipped = () => items.filter((item) => answer(item)?.action === "skip");

  const draw = () => {
    const over = at >= items.length;
    $("example").hidden = $("question").hidden = over;
    $("end").hidden = !over;
    const many = answered(), left = skipped().length;
    $("progress").textContent = `${many} of ${items.length} answered${left ? `, ${left} skipped` : ""}`;
    $("done").max = Math.max(1, items.length);
    $("done").value = many + left;
    store(placeKey, String(at));
    if (over) {
      $("sum").textContent = items.length ? `${many} answered, ${left} skipped, ${items.length - many - left} not come to.` : "There is nothing to ask.";
      $("again").hidden = !left;
      $("first").hidden = !items.length;
      $(left ? "again" : "csv").focus();
      return;
    }
    const item = items[at];
    example(item);
    $("id").textContent = `${at + 1} / ${items.length}: ${item.id}`;
    const labelled = item.given !== null;
    $("thought").hidden = $("keep").hidden = $("believe").hidden = $("own").hidden = !labelled;
    $("given").textContent = item.given;
    $("believed").textContent = item.believed;
    $("keep").querySelector("b").textContent = item.given;
    $("believe").querySelector("b").textContent = item.believed;
    $("shares").replaceChildren();
    for (const [name, share] of item.shares) {
      const row = make("div", undefined, $("shares"));
      row.className = "share";
      make("span", name, row);
      const meter = make("meter", undefined, row);
      meter.value = share;
      meter.setAttribute("aria-label", name);
      make("span", `${Math.round(100 * share)} %`, row);
    }
    const said = answer(item);
    $("said").textContent = !said ? "" : said.action === "skip" ? "you skipped this one" : `you said: ${said.answer}`;
    $("find").value = "";
    list("");
    const onward = items[at + 1];
    if (onward?.picture) new Image().src = onward.picture; // decoded by the time that it is shown
  };

  const example = (item) => {
    const place = $("example");
    place.replaceChildren();
    if (item.picture) {
      const image = make("img", undefined, place);
      image.alt = item.id;
      image.src = item.picture;
    }
    if (item.sound) {
      const sound = make("audio", undefined, place);
      sound.controls = true;
      sound.src = item.sound;
      sound.setAttribute("aria-label", item.id);
    }
    if (item.text !== undefined) make("p", item.text, place);
    if (item.cells) {
      const body = make("tbody", undefined, make("table", undefined, place));
      for (const [name, value] of item.cells) {
        const row = make("tr", undefined, body);
        make("th", name, row).scope = "row";
        make("td", value, row);
      }
    }
    place.scrollTop = 0;
    place.tabIndex = 0; // what is longer than its box is scrolled by keys
  };

  const matching = (words) => {
    const wanted = words.trim().toLowerCase();
    const starts = classes.filter((name) => name.toLowerCase().startsWith(wanted));
    return [...starts, ...classes.filter((name) => !starts.includes(name) && name.toLowerCase().includes(wanted))];
  };

  const list = (words) => {
    const said = answer(items[at])?.answer;
    $("classes").replaceChildren();
    for (const name of matching(words).slice(0, 60)) {
      const button = make("button", undefined, make("li", undefined, $("classes")));
      button.type = "button";
      if (keyFor.has(name)) { make("kbd", keyFor.get(name), button); button.append(" "); }
      button.append(name);
      button.setAttribute("aria-pressed", String(said === name));
      button.addEventListener("click", () => give(name));
    }
  };

  const forward = () => {
    if (only) {
      const next = only.find((item) => items.indexOf(item) > at);
      if (next) at = items.indexOf(next); else { only = null; at = items.length; }
    } else at += 1;
    draw();
  };
  const write = (action, label) => {
    store(key(items[at]), JSON.stringify({ action, answer: label, when: stamp() }));
    if (document.activeElement instanceof HTMLElement && document.activeElement !== document.body) document.activeElement.blur();
    forward();
  };
  const give = (name) => {
    const item = items[at];
    write(name === item.given ? "keep" : name === item.believed ? "believed" : "other", name);
  };
  const skip = () => {
    // Who has answered before and only looks again does not lose the answer.
    if (answer(items[at])?.action && answer(items[at]).action !== "skip") forward();
    else write("skip", null);
  };
  const back = () => { if (at > 0) { only = null; at -= 1; draw(); } };

  $("keep").addEventListener("click", () => give(items[at].given));
  $("believe").addEventListener("click", () => give(items[at].believed));
  $("skip").addEventListener("click", skip);
  $("back").addEventListener("click", back);
  $("again").addEventListener("click", () => {
    only = skipped();
    at = items.indexOf(only[0]);
    draw();
  });
  $("first").addEventListener("click", () => { only = null; at = 0; draw(); });
  $("find").addEventListener("input", () => list($("find").value));
  $("find").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && $("find").value.trim() && matching($("find").value).length) {
      event.preventDefault();
      give(matching($("find").value)[0]);
    } else if (event.key === "Escape") $("find").blur();
  });
  $("who").value = load(whoKey) ?? "";
  $("who").addEventListener("input", () => store(whoKey, $("who").value));
  $("who").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === "Escape") $("who").blur(); });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    if (event.target instanceof HTMLInputElement || event.target instanceof HTMLAudioElement) return;
    const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const over = at >= items.length;
    if (letter === "z" || letter === "ArrowLeft" || letter === "Backspace") { event.preventDefault(); back(); return; }
    if (over) return;
    const actions = {
      k: items[at].given === null ? undefined : () => give(items[at].given),
      b: items[at].believed === null ? undefined : () => give(items[at].believed),
      s: skip,
      o: () => $("find").focus(),
      ArrowRight: forward,
    };
    const action = Object.hasOwn(actions, letter) && actions[letter] ? actions[letter] : keyOf.has(letter) ? () => give(keyOf.get(letter)) : null;
    if (action) { event.preventDefault(); action(); }
  });

  // ------------------------------------------------------------------------------------------------ taking away

  const rows = () => items.flatMap((item) => {
    const said = answer(item);
    return said ? [{ id: item.id, mark: item.mark, given: item.given, believed: item.believed, answer: said.answer, action: said.action, when: said.when }] : [];
  });
  const download = (text, kind, ending) => {
    const link = make("a", undefined, document.body);
    const name = ($("who").value.trim() || "answers").replace(/[^\p{L}\p{N}_-]+/gu, "-");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = `${name}-${content.queue.slice(0, 6)}.${ending}`;
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = false;
  };
  // A spreadsheet takes some beginnings for a formula; assay takes the apostrophe off again.
  const cell = (value) => {
    const text = String(value ?? "");
    const plain = /^[=+\-@\t\r']/.test(text) && !(text.trim() && Number.isFinite(Number(text))) ? `'${text}` : text;
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  };
  $("json").addEventListener("click", () => {
    const who = $("who").value.trim() || null;
    const answers = rows().map((row) => ({ ...row, who }));
    download(JSON.stringify({ format: content.format, queue: content.queue, data: content.data, who, answers }, null, 1) + "\n", "application/json", "json");
  });
  $("csv").addEventListener("click", () => {
    const names = ["id", "given", "believed", "answer", "action", "who", "when", "mark"];
    const who = $("who").value.trim();
    const lines = rows().map((row) => names.map((name) => cell(name === "who" ? who : row[name])).join(","));
    download("\uFEFF" + [names.join(","), ...lines].join("\r\n") + "\r\n", "text/csv", "csv");
  });

  // ------------------------------------------------------------------------------------------------ where it goes on

  const last = Number(load(placeKey));
  const open = items.findIndex((item) => !answer(item));
  at = Number.isInteger(last) && last > 0 && last < items.length && !answer(items[last]) ? last : open < 0 ? items.length : open;
  draw();
  // Another tab with the same page: what is answered there counts here.
  addEventListener("storage", (event) => {
    if (!event.key?.startsWith(`assay-answers/${content.queue}/`) || event.key === placeKey) return;
    kept.delete(event.key);
    draw();
  });
})();
