// The npm client against the local host: node client.mjs URL MODEL, in a folder that has `openai` and `zod`.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const here = createRequire(path.join(process.cwd(), "package.json"));
const load = (name) => import(pathToFileURL(here.resolve(name)).href);
const { default: OpenAI, toFile } = await load("openai");
const { zodResponseFormat } = await load("openai/helpers/zod");
const { z } = await load("zod");
const { version } = JSON.parse(readFileSync("node_modules/openai/package.json"));

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "local", maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: "x" }], max_tokens: 60, temperature: 0 };

const whole = await client.chat.completions.create(asked);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const Paint = z.object({ colour: z.enum(["red", "green"]), sure: z.boolean() });
const parsed = await client.chat.completions.parse({ ...asked, response_format: zodResponseFormat(Paint, "paint") });
assert.ok(["red", "green"].includes(parsed.choices[0].message.parsed.colour));

const response = await client.responses.create({ model, input: "x", max_output_tokens: 8 });
assert.equal(typeof response.output_text, "string");

const rows = Array.from({ length: 12 }, (_, n) =>
  JSON.stringify({ messages: [{ role: "user", content: `${n}` }, { role: "assistant", content: "true" }] }));
const file = await client.files.create({ file: await toFile(Buffer.from(rows.join("\n")), "x.jsonl"), purpose: "fine-tune" });
let job = await client.fineTuning.jobs.create({ model, training_file: file.id });
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((done) => setTimeout(done, 200));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, "succeeded");
await client.chat.completions.create({ ...asked, model: job.fine_tuned_model });
await assert.rejects(client.chat.completions.create({ ...asked, model: "nobody" }), (error) => error.status === 404);
console.log(`openai (npm) ${version}: ok`);
