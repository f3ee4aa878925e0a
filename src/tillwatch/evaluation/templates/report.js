(() => {
  "use strict";
  const { rows, point } = JSON.parse(document.getElementById("explorer-data").textContent);
  const slider = document.getElementById("threshold");
  const cut = document.getElementById("cut");
  const [left, right] = [Number(cut.dataset.left), Number(cut.dataset.right)];
  const shown = ["threshold-value", "e-recall", "e-found", "e-precision", "e-alarms", "e-false", "e-others", "e-rate", "e-bounds"];
  const show = (row) => {
    const [value, ...texts] = row;
    shown.forEach((id, place) => { document.getElementById(id).textContent = texts[place]; });
    slider.setAttribute("aria-valuetext", `${texts[0]}: recall ${texts[1]}, precision ${texts[3]}, ${texts[5]} false alarms`);
    const x = left + Math.min(1, value) * (right - left);
    cut.setAttribute("x1", x);
    cut.setAttribute("x2", x);
  };
  const reset = () => { slider.value = point[0]; show(point); };
  slider.addEventListener("input", () => show(rows[Math.round(slider.value * (rows.length - 1))]));
  document.getElementById("reset").addEventListener("click", reset);
  reset();
})();
