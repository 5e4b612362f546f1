"use strict";
// Search and filters of the home page, and the buttons that copy. Without it, everything is there to be read.

const form = document.querySelector(".filters");
if (form) {
  const rows = [...document.querySelectorAll("[data-text]")];
  const texts = new Map(rows.map((row) => [row, `${row.textContent} ${row.dataset.text}`.toLowerCase()]));
  const groups = [...document.querySelectorAll("[data-group]")];
  const search = form.querySelector("[data-search]");
  const choices = [...form.querySelectorAll("[data-filter]")];
  const [none, found, reset, index] = ["none", "found", "reset", "index"].map((name) => document.querySelector(`[data-${name}]`));

  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const says = words.every((word) => texts.get(row).includes(word));
      const chosen = choices.every(({ value, dataset }) => !value || row.dataset[dataset.filter].split("|").includes(value));
      row.hidden = !(says && chosen);
      count += !row.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector("[data-text]:not([hidden])");
    const narrowed = words.length > 0 || choices.some(({ value }) => value);
    none.hidden = count > 0 || !rows.length;
    reset.hidden = !narrowed;
    found.textContent = narrowed ? `${count} of ${rows.length} papers` : "";
    if (index) index.hidden = narrowed;
  };

  // The address says what is looked for, so that it can be passed on.
  const read = () => {
    const asked = new URLSearchParams(location.search);
    search.value = asked.get("search") ?? "";
    for (const choice of choices) {
      choice.value = asked.get(choice.dataset.filter) ?? "";
      if (choice.selectedIndex < 0) choice.value = "";
    }
    apply();
  };
  const write = () => {
    const asked = new URLSearchParams();
    if (search.value) asked.set("search", search.value);
    for (const { value, dataset } of choices) if (value) asked.set(dataset.filter, value);
    history.replaceState(null, "", `${location.pathname}${asked.size ? `?${asked}` : ""}`);
    apply();
  };

  form.hidden = false;
  form.addEventListener("input", write);
  form.addEventListener("submit", (event) => event.preventDefault());
  reset.addEventListener("click", () => {
    for (const field of [search, ...choices]) field.value = "";
    write();
    search.focus();
  });
  addEventListener("popstate", read);
  read();
}

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
}
