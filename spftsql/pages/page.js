"use strict";
for (const form of document.querySelectorAll("form[data-for]")) {
  const rows = [...document.querySelectorAll(`#${form.dataset.for} > tbody > tr`)];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const fields = [...form.querySelectorAll("[data-key]")];
  const apply = () => {
    let shown = 0;
    rows.forEach((row, place) => {
      const fits = fields.every(({ dataset, value }) => dataset.key === "text"
        ? texts[place].includes(value.toLowerCase())
        : value === "" || row.getAttribute(`data-${dataset.key}`) === value);
      row.hidden = !fits;
      shown += fits;
    });
    form.querySelector("output").textContent = `${shown} of ${rows.length} ${form.dataset.what}`;
  };
  for (const kind of ["input", "change"]) form.addEventListener(kind, apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
