/** What a process does that never closes (unclosed-process.ts): after the first it ends by itself, after the second it stays. */
export const ENDS = [
  ...[
    'ready',
    'acquire',
    'lease',
    'wait',
    'transaction',
    'campaign',
    'campaign by connection',
    'observe',
    'send',
    'run',
    'drain',
  ],
  ...['append and read', 'subscribe', 'consume', 'time', 'query', 'kysely'],
]
export const STAYS = [
  ...[
    'holds',
    'holds a lease',
    'leads',
    'leads by connection',
    'works',
    'handles',
    'consumes',
    'waits',
    'waits for a lease',
  ],
  ...['observes', 'subscribes', 'subscribes to all', 'runs'],
]
