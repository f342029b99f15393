/** Odd settings and parsers: its other tests. */
import { oddSettings } from './odd-settings.suite.ts'

oddSettings('others')
