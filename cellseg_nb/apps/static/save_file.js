// Save a file. A page that is loaded again runs this again; the key keeps it from saving twice.
if (!sessionStorage.getItem(given.key)) {
  sessionStorage.setItem(given.key, "saved");
  fetch("data:application/octet-stream;base64," + given.content).then(r => r.blob()).then(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = given.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}
