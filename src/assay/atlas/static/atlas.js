"use strict";
// Search and filters of the home page, and the buttons that copy. Without it, everything is there to be read.

const form = document.querySelector(".filters");
if (form) {
  const rows = [...document.querySelectorAll("[data-text]")];
  const texts = new Map(rows.map((row) => [row, `${row.textContent} ${row.dataset.text}`.toLowerCase()]));
  const groups = [...document.querySelectorAll("[data-group]")];
  const search = form.querySelector("[data-search]");
  const choices = [...form.querySelectorAll("[data-filter]")];
  const none = document.querySelector("[data-none]");

  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const found = words.every((word) => texts.get(row).includes(word));
      const chosen = choices.every(({ value, dataset }) => !value || row.dataset[dataset.filter].split("|").includes(value));
      row.hidden = !(found && chosen);
    }
    for (const group of groups) group.hidden = !group.querySelector("[data-text]:not([hidden])");
    none.hidden = groups.some((group) => !group.hidden);
  };

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
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
