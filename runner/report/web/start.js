// Sections in order; what the sections share tells them when to draw.
document.title = data.title;
document.getElementById("title").textContent = data.title;
document.getElementById("about").textContent =
  `${plural(runs.length, "run")} in ${data.folder}, as of ${moment(data.created)}` +
  (data.selected ? `; ${data.selected}` : "");
overview();
verdictTables();
runsTable();
learningCurves();
pareto();
difference();
selection.changed();
document.documentElement.dataset.ready = "yes";
