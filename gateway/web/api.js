// What the page reads over HTTP; everything else goes over the wire.

/**
 * @param {string} path
 * @returns {Promise<any>}
 */
async function getJson(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
  return response.json();
}

/** @returns {Promise<import("./store.js").Persona[]>} */
export async function getPersonas() {
  return (await getJson("/v1/personas")).data;
}

/** @returns {Promise<import("./store.js").ChatSummary[]>} newest first */
export async function getChats() {
  return (await getJson("/v1/chats")).data;
}

/** @returns {Promise<import("./store.js").Backend[]>} the default one among them */
export async function getBackends() {
  return (await getJson("/v1/backends")).data;
}

/**
 * @param {File[]} files at most a hundred
 * @returns {Promise<import("./store.js").Brought[]>} what became of each
 */
export async function bringPersonas(files) {
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  const response = await fetch("/v1/personas", { method: "POST", body });
  const answer = await response.json().catch(() => ({}));
  if (answer.data) return answer.data;
  throw new Error(answer.error?.message ?? `The server answered ${response.status}.`);
}

/**
 * @param {string} chat
 * @returns {Promise<import("./trace.js").Trace>} what lore did in the last reply's prompt
 */
export async function getTrace(chat) {
  const response = await fetch(`/v1/chats/${encodeURIComponent(chat)}/trace`);
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw new Error(answer.error?.message ?? `The server answered ${response.status}.`);
}

/** @param {string} chat */
export async function deleteChat(chat) {
  const response = await fetch(`/v1/chats/${encodeURIComponent(chat)}`, { method: "DELETE" });
  if (response.ok) return;
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.error?.message ?? `The server answered ${response.status}.`);
}

/** @param {string} persona */
export async function removePersona(persona) {
  const path = `/v1/personas/${encodeURIComponent(persona)}`;
  const response = await fetch(path, { method: "DELETE" });
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
}
