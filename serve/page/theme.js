// Before the first paint: the theme that was chosen, where one was.
try {
  const theme = localStorage.getItem("spftsql.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the system's theme holds.
}
