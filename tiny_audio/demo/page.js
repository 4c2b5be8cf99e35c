// A click on a word plays from there; the word that sounds is marked; Stop presses Gradio's own, hidden button.
"use strict";
(() => {
  document.addEventListener("click", (event) => {
    const word = event.target.closest?.(".tiny-audio .word");
    const audio = document.querySelector("#speech audio");
    if (word && audio) {
      audio.currentTime = Number(word.dataset.start);
      audio.play();
    }
    const stop = event.target.closest?.(".tiny-audio .stop");
    if (stop) {
      document.querySelector("#stop").click();
      document.querySelector(".tiny-audio .live")?.classList.remove("live");
      stop.parentElement.textContent = "Stopped.";
    }
  });

  // Events of media do not bubble, but they can be caught on their way down.
  document.addEventListener("timeupdate", (event) => {
    const now = event.target.currentTime;
    for (const word of document.querySelectorAll(".tiny-audio .word")) {
      const sounds = Number(word.dataset.start) <= now && now < Number(word.dataset.end);
      word.classList.toggle("sounds", sounds);
    }
  }, true);
})();
