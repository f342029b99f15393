/**
 * A process of the experiment with jobs: it works the queues of a peer and of Lockstep, in each form, until it is killed.
 */
import { Recorder } from '../../linear/index.ts'
import { type JobSystem, QUEUES } from './job-forms.ts'
import { Resource } from './resource.ts'

const [peer = '', peerUrl = '', databaseUrl = '', worker = ''] = process.argv.slice(2)
const resource = new Resource(databaseUrl)
const recorder = new Recorder()

process.on('unhandledRejection', (error) => console.log(`error ${peer} ${String(error)}`.replaceAll('\n', ' ')))
process.stdin.resume().once('close', () => process.exit()) // the parent has ended

for (const system of new Set(['lockstep', peer])) {
  await QUEUES[system as JobSystem].work(
    databaseUrl,
    async (form, job, statement) => {
      if (statement) {
        // It happens when the transaction commits, which the handler does not see: the table shows it at the end.
        await statement('insert into job_effect values ($1, $2::integer, $3)', [form, job, worker])
      } else {
        const act = () => resource.effect(form, job, worker, form.endsWith('idempotent'))
        await recorder.do(`${form} ${job}`, { do: 'effect' }, act, (done) => (done ? {} : 'none'))
      }
      console.log(`done ${form.replaceAll(' ', '-')}`)
    },
    peerUrl,
  )
}
console.log('ready')
