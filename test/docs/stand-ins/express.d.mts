/** The types of the stand-in for express: as much as docs/in-your-app.md uses. */
import type { Server } from 'node:http'

export interface Response {
  status(code: number): Response
  json(body: unknown): void
}
export interface Express {
  post(path: string, handler: (request: { params: { id: string } }, response: Response) => Promise<void>): void
  listen(port: number): Server
}
export default function express(): Express
