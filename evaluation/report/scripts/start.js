// A link to a number opens the folded entry that it is in.
function openTarget() {
  const target = location.hash.length > 1 ? byId(decodeURIComponent(location.hash.slice(1))) : null;
  const entry = target && (target.matches("details") ? target : target.closest("details"));
  if (entry) { entry.open = true; target.scrollIntoView(); }
}

startBoards();
startDifferences();
startViewer();
openTarget();
addEventListener("hashchange", openTarget);

