"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const PLAY = "M4 2l10 6-10 6z", PAUSE = "M3 2h4v12H3zM9 2h4v12H9z";
  const ROWS_ON_A_PAGE = 50;

  /* An element with properties and children. Text only ever becomes text, never markup. */
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

  /* Players: the browser's controls give way to a button and a waveform that can be moved in. */
  const audios = [...document.querySelectorAll(".player audio")];
  for (const audio of audios) {
    const player = audio.parentElement, wave = player.querySelector(".wave");
    const cursor = wave.querySelector(".cursor"), stops = wave.querySelectorAll("stop");
    const seconds = Number(player.dataset.seconds), name = player.dataset.name;
    const icon = document.createElementNS(SVG, "svg"), shape = document.createElementNS(SVG, "path");
    icon.setAttribute("viewBox", "0 0 16 16");
    icon.setAttribute("aria-hidden", "true");
    icon.append(shape);
    const button = make("button", { type: "button", className: "play" }, icon);
    const seek = make("input", { type: "range", min: 0, max: seconds, step: 0.05, value: 0 });
    seek.setAttribute("aria-label", `Position in ${name}`);
    const time = make("span", { className: "time" });

    const draw = () => {
      const part = Math.min(audio.currentTime / seconds, 1);
      cursor.setAttribute("x1", 299 * part);
      cursor.setAttribute("x2", 299 * part);
      for (const stop of stops) stop.setAttribute("offset", part);
      seek.value = audio.currentTime;
      seek.setAttribute("aria-valuetext", `${audio.currentTime.toFixed(1)} of ${seconds.toFixed(1)} seconds`);
      time.textContent = `${clock(audio.currentTime)} / ${clock(Math.round(seconds))}`;
      shape.setAttribute("d", audio.paused ? PLAY : PAUSE);
      button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${name}`);
      if (!audio.paused) requestAnimationFrame(draw);
    };
    button.addEventListener("click", () => {
      if (!audio.paused) return audio.pause();
      for (const other of audios) if (other !== audio) other.pause();
      audio.play().catch((error) => {
        if (error.name !== "AbortError") time.textContent = "cannot be played";  // an abort is a quick pause
      });
    });
    seek.addEventListener("input", () => { audio.currentTime = seek.value; });
    for (const event of ["play", "pause", "ended", "seeked"]) audio.addEventListener(event, draw);
    audio.controls = false;
    player.classList.add("ready");
    player.prepend(button);
    wave.append(seek);
    wave.after(time);
    draw();
  }

  /* All utterances, a page at a time: thousands of rows would be slow to lay out. */
  const records = JSON.parse(document.getElementById("records").textContent);
  const count = (operations) => operations.replaceAll("=", "").length;
  records.forEach((record, index) => {
    record.index = index;
    record.errors = count(record.r[record.r.length - 1][3]);
    record.text = [record.i, record.p || "", ...record.r.flatMap((run) => [run[1], run[2]])].join(" ").toLowerCase();
  });
  const TESTS = {
    all: () => true,
    errors: (record) => record.errors > 0,
    suspected: (record) => Boolean(record.q),
    failed: (record) => record.r.some((run) => run[4] !== null),
  };
  const ORDERS = {
    set: (left, right) => left.index - right.index,
    errors: (left, right) => right.errors - left.errors || left.index - right.index,
    seconds: (left, right) => (right.s || 0) - (left.s || 0) || left.index - right.index,
  };

  const diff = (reference, hypothesis, operations) => {
    const said = reference.split(" "), written = hypothesis.split(" ");
    const line = make("p", { className: "diff", dir: "auto" });
    for (const operation of operations) {
      if (operation === "=") { line.append(said.shift()); written.shift(); }
      else if (operation === "D") line.append(make("span", { className: "lost" }, "−", make("del", {}, said.shift())));
      else if (operation === "I") line.append(make("span", { className: "added" }, "+", make("ins", {}, written.shift())));
      else {
        const arrow = make("span", { className: "mark" }, "→");
        line.append(make("span", { className: "swap" }, make("del", {}, said.shift()), arrow, make("ins", {}, written.shift())));
      }
      line.append(" ");
    }
    if (!operations) line.append(make("span", { className: "muted" }, "(no words, and none written)"));
    return line;
  };
  const row = (record) => {
    const about = [record.s ? `${record.s.toFixed(1)} s` : "", record.p || ""].filter(Boolean).join(" · ");
    const head = make("p", { className: "meta" }, make("bdi", { className: "id" }, record.i), about ? ` · ${about}` : "");
    if (record.h) head.append(" · ", make("a", { href: `#${record.h}` }, "Listen"));
    const item = make("li", {}, head);
    for (const reason of record.q || []) item.append(make("p", { className: "reason" }, reason));
    for (const [letter, reference, hypothesis, operations, error] of record.r) {
      if (error !== null) item.append(make("p", { className: "reason" }, `Could not be transcribed: ${error}`));
      const line = diff(reference, hypothesis, operations);
      if (letter) line.prepend(make("b", { className: "letter", dir: "ltr" }, letter), " ");
      item.append(line);
    }
    return item;
  };

  const at = (id) => document.getElementById(id);
  let found = records, page = 0;
  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / ROWS_ON_A_PAGE));
    at("list").replaceChildren(...found.slice(page * ROWS_ON_A_PAGE, (page + 1) * ROWS_ON_A_PAGE).map(row));
    at("status").textContent = `${found.length.toLocaleString("en")} of ${records.length.toLocaleString("en")} utterances`;
    at("page").textContent = `Page ${page + 1} of ${pages}`;
    at("pages").hidden = pages === 1;
    at("previous").disabled = page === 0;
    at("next").disabled = page === pages - 1;
  };
  const filter = () => {
    const query = at("query").value.trim().toLowerCase().replace(/\s+/g, " "), test = TESTS[at("show").value];
    found = records.filter((record) => test(record) && record.text.includes(query)).sort(ORDERS[at("order").value]);
    page = 0;
    show();
  };
  const turn = (pages) => { page += pages; show(); at("all").scrollIntoView(); };
  at("filter").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["query", "show", "order"]) at(id).addEventListener("input", filter);
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("filter").hidden = false;
  show();
})();
