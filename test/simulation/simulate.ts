/** One world from one seed: what it is made of, its life, and what must be true at its end. */

import type { Lockstep } from '../../lib/index.ts'
import { seeded } from '../chaos/random.ts'
import { breakLine, KINDS, type Kind, type Plan, type Random, torment, WorldFaults } from './faults.ts'
import { Ledger, Violation } from './ledger.ts'
import { caller, open } from './programs.ts'
import { Process, World } from './scheduler.ts'
import { Server } from './server/server.ts'
import { Socket } from './socket.ts'

/** What is left out of a world, to find the smallest one that still fails. */
export interface Without {
  kinds: Kind[]
  /** Callers, by number. */
  callers: number[]
  /** A shorter life, in ms. */
  lifeMs?: number
}

export interface Outcome {
  seed: number
  steps: number
  grants: number
  /** In ms of the world. */
  endedAt: number
  /** The numbers of its callers. */
  callers: number[]
  /** Undefined: every promise was kept. */
  violation: string | undefined
}

const CALM_MS = 180_000

/** Draws of one purpose, so that what is left out changes nothing else. */
const stream = (seed: number, purpose: string): Random => {
  let hash = seed
  for (const c of purpose) hash = (Math.imul(hash, 31) + c.charCodeAt(0)) | 0
  return seeded(hash)
}

/** A fault of the server, to see that it is found. */
export interface Planted {
  /** It gives up the advisory lock of this name now and then, whoever has it. */
  forgets: string
}

/**
 * Runs the world of a seed.
 * @param tell  is told each statement, grant and fault, for a person to read.
 */
export async function simulate(
  seed: number,
  without: Without = { kinds: [], callers: [] },
  tell?: (line: string) => void,
  planted?: Planted,
): Promise<Outcome> {
  const draw = stream(seed, 'shape')
  const calm = draw() < 0.1
  const kinds = new Set(KINDS.filter(() => draw() < 0.5).filter((kind) => !calm && !without.kinds.includes(kind)))
  const plan: Plan = { kinds, perStatement: draw() * draw() * 0.2, everyMs: 500 + draw() * 8_000 }
  const pooled = draw() < 0.15
  const names = ['a', 'b', 'c'].slice(0, 1 + Math.floor(draw() * 3))
  const shape = Array.from({ length: 1 + Math.floor(draw() * 3) }, () => 1 + Math.floor(draw() * 4))
  const leads = stream(seed, 'leads')() < 0.4
  const lifeMs = without.lifeMs ?? 5_000 + draw() * 30_000

  const world = new World()
  const told = tell && ((line: string) => tell(`${world.now.toFixed(1).padStart(9)} ms  ${line}`))
  const faults = new WorldFaults(plan, stream(seed, 'faults'), told)
  const server = new Server(world, stream(seed, 'server'), faults)
  server.pooled = pooled
  const ledger = new Ledger(world, server, told)
  const sockets = new Set<Socket>()
  const processes: Process[] = []
  const running = new Map<Process, { lockstep: Lockstep; doing: string[] }>()
  let over = false
  let count = 0
  const outcome = (violation: string | undefined): Outcome => ({
    ...{ seed, steps: world.steps, grants: ledger.grants, endedAt: world.now, violation },
    callers: shape.flatMap((most, at) => Array.from({ length: most }, (_, nth) => at * 10 + nth)),
  })

  function start(at: number): void {
    const process = new Process(`p${at}.${++count}`)
    processes[at] = process
    world.after(
      0,
      () => {
        const lockstep = open(pooled, seed)
        const doing: string[] = []
        running.set(process, { lockstep, doing })
        for (let nth = 0; nth < (shape[at] as number); nth++) {
          const number = at * 10 + nth
          if (without.callers.includes(number)) continue
          const stage = { ...{ world, ledger, process, lockstep, names, leads }, over: () => over }
          const random = stream(seed, `caller ${number} of ${count}`)
          caller(stage, random, (what) => {
            doing[nth] = what
          }).catch((error) => world.fail(error))
        }
      },
      process,
    )
  }

  // In some worlds the clock of the server is set now and then: mostly forward.
  function setClocks(random: Random): void {
    if (calm || random() < 0.5) return
    const set = () => {
      if (over) return
      const byMs = random() < 0.7 ? random() * 30_000 : -random() * 5_000
      told?.(`the clock of the server is set by ${Math.round(byMs)} ms`)
      server.setClock(byMs)
      world.after(1_000 + random() * 10_000, set, undefined)
    }
    world.after(random() * 10_000, set, undefined)
  }

  const unhandled = (error: unknown) =>
    world.fail(new Violation(`Nobody handles this error: ${(error as Error)?.stack ?? error}`))
  process.on('unhandledRejection', unhandled)
  try {
    for (const at of shape.keys()) start(at)
    const revive = (dead: Process) => start(processes.indexOf(dead))
    torment({ world, server, processes, sockets, revive }, faults, plan, stream(seed, 'torment'))
    if (leads) setClocks(stream(seed, 'clock'))
    const sweep = () => {
      if (planted) server.forget(planted.forgets)
      server.sweep()
      for (const socket of sockets) if (!socket.open) sockets.delete(socket)
      world.after(500, sweep, undefined)
    }
    sweep()
    world.after(
      lifeMs,
      () => {
        over = true
        faults.over = true
        for (const each of processes) if (each.paused && !each.dead) world.resume(each)
        for (const socket of sockets) if (socket.swallowed) breakLine(server, socket)
      },
      undefined,
    )

    const socket = () => {
      const backend = server.open()
      const made = new Socket(world, backend, () => faults.delay())
      sockets.add(made)
      return made
    }
    const idle = () =>
      [...running].every(([process, { doing }]) => process.dead || doing.every((what) => what === 'has ended'))
    const late = () => world.now > lifeMs + CALM_MS
    await world.run(
      seed,
      socket,
      () => (over && processes.every((each) => !each.dead) && idle()) || late(),
      () => ledger.check(),
    )
    if (!idle())
      throw new Violation(
        `A caller is forgotten: ${[...running.values()].map(({ doing }) => doing.join(', ')).join('; ')}`,
      )

    let closed = 0
    for (const process of processes) {
      world.after(
        0,
        () =>
          running
            .get(process)
            ?.lockstep.close()
            .then(
              () => closed++,
              (error) => world.fail(error),
            ),
        process,
      )
    }
    const end = world.now + CALM_MS
    await world.run(
      seed,
      socket,
      () => closed === processes.length || world.now > end,
      () => ledger.check(),
    )
    if (closed < processes.length) throw new Violation('close() does not end')
    const settled = world.now + 30_000
    await world.run(
      seed,
      socket,
      () => world.now > settled,
      () => {},
    )
    const timers = processes
      .filter(({ timers }) => timers.size > 0)
      .map(({ name, timers }) => `${timers.size} timers of ${name}`)
    const left = [
      ...timers,
      ...[...server.backends].map((each) => `connection ${each.pid} of ${each.line?.process.name}`),
      ...(server.locks.size > 0 ? [`${server.locks.size} advisory locks`] : []),
    ]
    if (left.length > 0) throw new Violation(`This is left after close(): ${left.join(', ')}`)
    return outcome(undefined)
  } catch (error) {
    const violation = error instanceof Violation ? error.message : `${(error as Error)?.stack ?? error}`
    return outcome(`${violation} (at ${Math.round(world.now)} ms)`)
  } finally {
    process.off('unhandledRejection', unhandled)
  }
}
