/** Odd settings and parsers: a few of its tests. */
import { oddSettings } from './odd-settings.suite.ts'

oddSettings('short')
