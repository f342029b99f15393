/**
 * Answers that do not end by themselves: server-sent events (WHATWG HTML §9.2), as `EventSource` reads them.
 *
 * There are two kinds. Where there always is a state (who leads), the answer begins when the first state is there. Where there
 * may be nothing for a week (events), the answer begins at once, after a `check` that the database can be read. Either way a
 * database that is away is a 503, not a stream that breaks. After that a failure ends the stream, and so does a server that
 * stops, or a client that goes away; the observation ends at once with it. The stream does not say why it ends: a client that
 * wants more connects again by itself, and `Last-Event-ID` spares it the events that it has seen. Now and then a comment shows
 * proxies that the stream is alive.
 *
 * A client that does not read costs little memory: the last piece that it was sent, of at most 64 Ki characters, and what the
 * sockets hold. The stream is pulled: the next state, or piece of an event, is only asked for when the last one was taken. That
 * is why hono's `streamSSE` is not used: it pushes, its heartbeats would queue up behind a client that does not read, it
 * writes failures to the console and to the client, and it sets headers of HTTP/1.1 that other adapters must not send. An open
 * stream is a connection, though, so their number has a limit: `maxStreams`. A client that does not read for long is
 * disconnected by the adapter (adapters/node.ts) or the platform.
 */
import type { Context } from 'hono'
import { clientGone, stopping, unavailable } from './problem.ts'

export interface StreamOptions {
  /** Milliseconds without an event after which a stream sends a heartbeat, 10–3,600,000. @default 15_000 */
  keepAliveMs?: number | undefined
  /** Streams that may be open at a time, of all kinds together; a request for another is a 503. @default 256 */
  maxStreams?: number | undefined
}

export interface ServerEvent {
  event: string
  /** Equal ids, equal states: the client sends back the last one that it saw. */
  id: string
  data: unknown
}

/** A part of an event, to be sent as it is: bytes of its JSON. */
export interface Piece {
  bytes: Uint8Array
  /** What the event begins with, if this does: `event` and `id`. */
  begins: Omit<ServerEvent, 'data'> | undefined
  ends: boolean
}

const HEADERS = {
  'Content-Type': 'text/event-stream',
  'X-Accel-Buffering': 'no', // nginx would collect events until they fill a page
}
/** Milliseconds after which a client connects again. */
const RETRY = 'retry: 1000\n\n'
const ALIVE = ': alive\n\n'

/** Whether the client asks for a stream: its `Accept` must name it, and prefer it to JSON. */
export function wantsStream(c: Context): boolean {
  return quality(c, 'text/event-stream') > quality(c, 'application/json')
}

// The quality value of a type (RFC 9110 §12.5.1), 0–1; 0: it was not named.
function quality(c: Context, type: string): number {
  for (const range of (c.req.header('Accept') ?? '').toLowerCase().split(',')) {
    const [name, ...parameters] = range.split(';').map((part) => part.trim())
    if (name === type) return Number(parameters.find((each) => each.startsWith('q='))?.slice(2) ?? 1)
  }
  return 0
}

/** The streams of one application. */
export class Streams {
  readonly #keepAliveMs: number
  readonly #most: number
  readonly #stop: AbortSignal | undefined
  #open = 0

  /**
   * @param stop  ends every stream.
   * @throws {RangeError} an option out of its range.
   */
  constructor(stop: AbortSignal | undefined, { keepAliveMs = 15_000, maxStreams = 256 }: StreamOptions) {
    this.#keepAliveMs = integer('keepAliveMs', keepAliveMs, 10, 3_600_000)
    this.#most = integer('maxStreams', maxStreams, 0, Number.MAX_SAFE_INTEGER)
    this.#stop = stop
  }

  /**
   * Answers with the latest state, unless the client has seen it, and then with every state that follows. With a `check` it
   * answers with everything from the beginning on.
   *
   * @param observe  without a check the latest state first; ends by the signal.
   * @param check  rejects if nothing can be read. With it the answer begins before there is a first state.
   * @throws {Problem} 503: too many streams, or the server is stopping; 499: the client has gone. Also the error of the first
   *   state, or of the check.
   */
  async open<T>(
    c: Context,
    observe: (signal: AbortSignal) => AsyncGenerator<T, void, void>,
    eventOf: (state: T) => ServerEvent | Piece,
    check?: () => Promise<unknown>,
  ): Promise<Response> {
    const client = c.req.raw.signal
    const early = () => (client.aborted ? clientGone() : this.#stop?.aborted ? stopping() : undefined)
    const refused = early()
    if (refused) throw refused
    if (this.#open >= this.#most) throw unavailable(`${this.#most} streams are open, and no more may be`)

    const over = new AbortController()
    const end = () => over.abort()
    const states = observe(over.signal)
    this.#open++
    over.signal.addEventListener('abort', () => {
      this.#open--
      void states.return().catch(() => {}) // at a `yield` it does not notice the signal
    })
    for (const other of [client, this.#stop]) other?.addEventListener('abort', end, { signal: over.signal })
    try {
      await check?.()
      const first = check ? undefined : (await states.next()).value
      const problem = early()
      if (problem) throw problem
      if (c.req.method !== 'HEAD') {
        const event = first && eventOf(first)
        const unseen = event && 'id' in event && event.id !== c.req.header('Last-Event-ID') ? written(event) : ''
        const next = patient(states, this.#keepAliveMs, over)
        return c.body(body(RETRY + unseen, next, eventOf, over), 200, HEADERS)
      }
    } catch (error) {
      end()
      throw early() ?? error
    }
    end()
    return c.body(null, 200, HEADERS)
  }
}

function body<T>(
  first: string,
  next: () => Promise<T | undefined>,
  eventOf: (state: T) => ServerEvent | Piece,
  over: AbortController,
): ReadableStream<Uint8Array> {
  let within = false // an event; its other pieces come before anything else
  const chunkOf = (state: T): Uint8Array => {
    const event = eventOf(state)
    if (!('bytes' in event)) return encoder.encode(written(event))
    within = !event.ends
    return framed(event)
  }
  return new ReadableStream<Uint8Array>(
    {
      start: (controller) => controller.enqueue(encoder.encode(first)),
      async pull(controller) {
        let state = await next()
        while (within && state === undefined && !over.signal.aborted) state = await next()
        if (over.signal.aborted) controller.close()
        else controller.enqueue(state === undefined ? encoder.encode(ALIVE) : chunkOf(state))
      },
      cancel: () => over.abort(),
    },
    { highWaterMark: 0 }, // no buffer: pulled only when read
  )
}

/**
 * Returns the next of `states`, or `undefined` when none has come for `ms`, or when there are no more. The next call continues
 * to wait for the same one: a stream that is quiet for a month leaves only one promise behind.
 */
function patient<T>(states: AsyncIterator<T, void>, ms: number, over: AbortController): () => Promise<T | undefined> {
  let [asked, came] = [false, undefined as T | undefined]
  let wake = () => {}
  over.signal.addEventListener('abort', () => wake())
  const ask = async () => {
    try {
      const { done, value } = await states.next()
      if (done) over.abort()
      else came = value
    } catch {
      over.abort() // the client connects again, and the new answer says what is wrong
    }
    wake()
  }
  return async () => {
    if (!asked) void ask()
    asked = true
    if (came === undefined && !over.signal.aborted) {
      const waited = Promise.withResolvers<void>()
      wake = waited.resolve
      const late = setTimeout(wake, ms)
      await waited.promise
      clearTimeout(late)
    }
    const state = came
    if (state !== undefined) [asked, came] = [false, undefined]
    return state
  }
}

// JSON has no line breaks of its own, so one line of data is enough.
function written({ event, id, data }: ServerEvent): string {
  return `${head({ event, id })}${JSON.stringify(data)}${END}`
}

function framed({ bytes, begins, ends }: Piece): Uint8Array {
  if (!begins && !ends) return bytes
  const before = encoder.encode(begins ? head(begins) : '')
  const after = encoder.encode(ends ? END : '')
  const all = new Uint8Array(before.length + bytes.length + after.length)
  all.set(before)
  all.set(bytes, before.length)
  all.set(after, before.length + bytes.length)
  return all
}

const encoder = new TextEncoder()
const END = '\n\n'
const head = ({ event, id }: Omit<ServerEvent, 'data'>): string => `event: ${event}\nid: ${id}\ndata: `

function integer(option: string, value: number, min: number, max: number): number {
  if (Number.isInteger(value) && value >= min && value <= max) return value
  throw new RangeError(`${option} must be an integer, ${min}–${max}, not ${value}`)
}
