/**
 * In place of the 50 languages that zod's messages come in: ours are in English, and the others are a sixth of a Worker.
 * (wrangler.jsonc and aws/bundle.ts put it there. Zod hands out all that it has as one object: no bundler can leave them out.)
 */
export { default as en } from 'zod/v4/locales/en.js'
