/**
 * Many calls, one statement.
 *
 * The first call goes at once; whatever arrives while its statement is in flight goes together in the next, or beside it
 * when it is many: then the server works on one while we work on the other. So 64 callers cost two commits, not 64, and
 * a single caller waits for nobody.
 */

/**
 * Calls of one tick go together; calls with the same `key` go one after another.
 *
 * @param run       one statement for many items; answers in their order.
 * @param most      items in one statement. @default 32
 * @param together  calls with the same key may share a statement; it is only that no two statements have it. @default false
 */
export function batched<T, R>(
  run: (items: T[]) => Promise<R[]>,
  key: (item: T) => string,
  most = 32,
  together = false,
): (item: T) => Promise<R> {
  type Call = { item: T; key: string; resolve: (result: R) => void; reject: (error: unknown) => void }
  let waiting: Call[] = []
  let inFlight = 0
  let soon = false
  const keys = new Set<string>() // of what is in flight

  function sendSoon() {
    if (soon || waiting.length === 0 || inFlight >= (waiting.length >= most / 4 ? 2 : 1)) return
    soon = true
    queueMicrotask(send)
  }

  async function send() {
    soon = false
    const calls: Call[] = []
    const later: Call[] = []
    const ours = new Set<string>()
    for (const call of waiting) {
      if (calls.length >= most || (keys.has(call.key) && !(together && ours.has(call.key)))) later.push(call)
      else {
        keys.add(call.key)
        ours.add(call.key)
        calls.push(call)
      }
    }
    waiting = later
    if (calls.length === 0) return // all of them wait for one of their own key
    inFlight++
    try {
      const results = await run(calls.map((call) => call.item))
      for (const [i, call] of calls.entries()) call.resolve(results[i] as R)
    } catch (error) {
      for (const call of calls) call.reject(error)
    }
    for (const call of calls) keys.delete(call.key)
    inFlight--
    sendSoon()
  }

  return (item) =>
    new Promise((resolve, reject) => {
      waiting.push({ item, key: key(item), resolve, reject })
      sendSoon()
    })
}
