/**
 * Replaces zod's messages in 50 languages: we use English only, and the others are a sixth of a Worker. Zod exports all
 * languages as one object, so no bundler can leave them out. wrangler.jsonc and aws/bundle.ts substitute this file.
 */
export { default as en } from 'zod/v4/locales/en.js'
