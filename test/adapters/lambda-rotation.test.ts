/** Secrets that change while a Lambda is warm: a few of its tests. */
import { rotations } from './lambda-rotation.suite.ts'

rotations('short')
