/**
 * Every route of the HTTP functions, asked once with something to answer: for tests of whether they work at all for whoever the
 * Lockstep behind them logs in as (grant.test.ts). What they answer is tested elsewhere.
 */
import type { createApp } from '../functions/app.ts'

type App = ReturnType<typeof createApp>
// biome-ignore lint/suspicious/noExplicitAny: JSON of any route
type Json = any

/** Routes of openapi.json that were not asked, and answers that are not a success: none, if all is well. */
export async function everyRoute(app: App): Promise<string[]> {
  const asked = new Set<string>()
  const problems: string[] = []
  const call = async (route: string, path: string, body?: unknown): Promise<Json> => {
    const [method = ''] = route.split(' ')
    asked.add(route)
    const stop = new AbortController()
    const response = await app.request(path, {
      method,
      signal: stop.signal,
      headers: {
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...(route.endsWith('/observe') && { accept: 'text/event-stream' }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    })
    if (!response.ok) problems.push(`${route}: ${response.status} ${await response.text()}`)
    if (response.headers.get('content-type')?.startsWith('text/event-stream')) {
      await response.body?.getReader().read()
      return stop.abort()
    }
    const text = response.ok ? await response.text() : ''
    return text.startsWith('{') ? JSON.parse(text) : undefined
  }
  const get = (route: string, path = route) => call(`GET ${route}`, path)
  for (const route of ['/healthz', '/readyz', '/openapi.json', '/v1/time']) await get(route)
  await Promise.all([leases(call), jobs(call), streams(call)])
  const { paths } = (await (await app.request('/openapi.json')).json()) as { paths: Record<string, object> }
  const routes = Object.entries(paths).flatMap(([path, verbs]) =>
    Object.keys(verbs).map((verb) => `${verb.toUpperCase()} ${path}`),
  )
  return [...problems, ...routes.filter((route) => !asked.has(route)).map((route) => `${route} was not asked`)]
}

type Call = (route: string, path: string, body?: unknown) => Promise<Json>

async function leases(call: Call): Promise<void> {
  for (const room of ['/v1/locks', '/v1/leaders']) {
    const [route, path] = [`${room}/{name}`, `${room}/r`]
    const { token } = await call(`POST ${route}`, path, { ttlMs: 5_000 })
    await call(`PATCH ${route}`, path, { token, ttlMs: 5_000 })
    await call(`GET ${route}`, path)
    await call(`GET ${room}`, room)
    if (room === '/v1/leaders') await call(`GET ${route}/observe`, `${path}/observe`)
    await call(`DELETE ${route}`, `${path}?token=${token}`)
    await call(`POST ${route}`, path, { ttlMs: 5_000 })
    await call(`DELETE ${route}`, `${path}?force=true`)
  }
}

async function jobs(call: Call): Promise<void> {
  const route = '/v1/tasks/{name}'
  await call(`PUT ${route}`, '/v1/tasks/r', { retryLimit: 3 })
  const send = () => call(`POST ${route}`, '/v1/tasks/r', { data: 1 })
  await call(`POST ${route}/broadcast`, '/v1/tasks/r/broadcast', { data: 1 })
  await call(`GET ${route}`, '/v1/tasks/r')
  await call('GET /v1/tasks', '/v1/tasks')
  for (const end of ['complete', 'fail']) {
    await send()
    const [job] = (await call(`POST ${route}/claim`, '/v1/tasks/r/claim', { holder: 'h' })).jobs
    const ask = (verb: string, more: object = {}) =>
      call(`POST ${route}/{id}/${verb}`, `/v1/tasks/r/${job.id}/${verb}`, { token: job.token, ...more })
    await ask('extend')
    await ask('progress', { fraction: 0.5 })
    await ask(end)
    await call(`GET ${route}/{id}`, `/v1/tasks/r/${job.id}`)
  }
  await call(`DELETE ${route}/{id}`, `/v1/tasks/r/${(await send()).id}`)
  await call('PUT /v1/schedules/{name}', '/v1/schedules/r', { queue: 'r', cron: '* * * * *' })
  await call('GET /v1/schedules/{name}', '/v1/schedules/r')
  await call('GET /v1/schedules', '/v1/schedules')
  await call('POST /v1/tick', '/v1/tick', { budgetMs: 1_000 })
  await call('DELETE /v1/schedules/{name}', '/v1/schedules/r')
}

async function streams(call: Call): Promise<void> {
  const [stream, group] = ['/v1/streams/{name}', '/v1/groups/{name}']
  const append = () => call(`POST ${stream}`, '/v1/streams/r', { events: [{ type: 'x' }] })
  await append()
  await call(`GET ${stream}`, '/v1/streams/r')
  await call(`GET ${stream}/lag`, '/v1/streams/r/lag')
  await call('GET /v1/streams', '/v1/streams')
  await call('GET /v1/events', '/v1/events')
  await call(`PUT ${group}`, '/v1/groups/r', { prefix: 'r', partitions: 1, from: '1', retryLimit: 0 })
  const ask = (verb: string, body: object) => call(`POST ${group}/${verb}`, `/v1/groups/r/${verb}`, body)
  const poll = async () => (await ask('poll', { holder: 'h', waitMs: 2_000 })).batches[0]
  const { events, ...failed } = await poll()
  await ask('fail', { ...failed, event: events[0].cursor })
  for (const verb of ['parked', 'lag']) await call(`GET ${group}/${verb}`, `/v1/groups/r/${verb}`)
  await ask('redeliver', { skip: true })
  await append()
  const { events: _, ...done } = await poll()
  await ask('commit', done)
  await ask('leave', { holder: 'h' })
  await call(`GET ${group}`, '/v1/groups/r')
  await call('GET /v1/groups', '/v1/groups')
  await call(`DELETE ${group}`, '/v1/groups/r')
  await call(`DELETE ${stream}`, '/v1/streams/r?before=10')
}
