/** A PostgreSQL in Docker, for a whole test run (../support/global-setup.ts). Testcontainers removes it even if the run is killed. */
import { PostgreSqlContainer } from '@testcontainers/postgresql'
import { getContainerRuntimeClient } from 'testcontainers'

/** Whether a server answers. The time limit is for a socket that accepts and never answers; normally the answer takes milliseconds. */
export async function dockerAnswers(): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const limit = setTimeout(resolve, 5_000, false)
  getContainerRuntimeClient().then(
    () => resolve(true),
    () => resolve(false),
  )
  return promise.finally(() => clearTimeout(limit))
}

export async function startContainer() {
  const started = await new PostgreSqlContainer('postgres:18-alpine')
    .withCommand(['postgres', '-c', 'fsync=off', '-c', 'max_connections=200'])
    .start()
  return { url: started.getConnectionUri(), what: 'a container', stop: () => started.stop() }
}
