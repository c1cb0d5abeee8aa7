"use strict";
const form = document.getElementById("filter");
const rows = [...document.querySelectorAll("#items > tbody > tr")];
const texts = rows.map((row) => row.textContent.toLowerCase());
function apply() {
  const wanted = [...form.querySelectorAll("[data-key]")].map((field) => [field.dataset.key, field.value]);
  let shown = 0;
  rows.forEach((row, place) => {
    const fits = wanted.every(([key, value]) =>
      key === "text" ? texts[place].includes(value.toLowerCase()) : value === "" || row.dataset[key] === value);
    row.hidden = !fits;
    shown += fits;
  });
  document.getElementById("shown").textContent = `${shown} of ${rows.length} questions`;
}
form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
apply();
