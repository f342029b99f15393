/** Secrets that change while a Lambda is warm: its other tests. */
import { rotations } from './lambda-rotation.suite.ts'

rotations('others')
