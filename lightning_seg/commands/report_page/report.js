// Puts truth and prediction of each image on top of each other, with a slider between them.
// Without this script they stand side by side.
document.documentElement.classList.add("js");
for (const card of document.querySelectorAll(".card")) {
  const stack = card.querySelector(".stack");
  const range = card.querySelector("input[type=range]");
  const move = () => {
    stack.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext", "truth on the left " + range.value + " percent");
  };
  range.addEventListener("input", move);
  move();
  const plain = card.querySelector("input[type=checkbox]");
  plain.addEventListener("change", () => stack.classList.toggle("plain", plain.checked));
  const choice = card.querySelector("select");
  if (choice) {
    const choose = () => {
      for (const name of ["prediction", "baseline"]) {
        stack.querySelector("." + name).hidden = name !== choice.value;
      }
    };
    choice.addEventListener("change", choose);
    choose();
  }
}
