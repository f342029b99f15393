/**
 * Many calls, one statement.
 *
 * The first call is sent at once. Calls that arrive while its statement is in flight are sent together in the next statement.
 * If they are many, that statement is sent before the first is answered: then the server works on one while this process works
 * on the other. So 64 callers cost two commits, not 64, and a single caller waits for nobody.
 */

/**
 * Gathers calls into statements. Calls of one tick share a statement; calls with the same `key` are sent one after another.
 *
 * @param run       runs one statement for many items. It answers in their order.
 * @param most      how many items one statement takes. @default 32
 * @param together  whether calls with the same key may share a statement. Two statements in flight never have the same key.
 *   @default false
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
  const keys = new Set<string>() // of the calls in flight

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
    if (calls.length === 0) return // all of them wait for a call in flight with the same key
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
