// The openai client of npm: models, a completion, a stream, and a chat of two turns. Prints JSON.
import OpenAI from "openai";

const [url, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const asked = { model: "ensemble", temperature: 0, max_tokens: 12 };
const models = [];
for await (const card of client.models.list()) models.push(card.id);
const text = (await client.completions.create({ prompt, ...asked })).choices[0].text;
let stream = "";
for await (const chunk of await client.completions.create({ prompt, stream: true, ...asked }))
  stream += chunk.choices[0].text;
const messages = [{ role: "developer", content: "sort" }, { role: "user", content: prompt }];
const first = (await client.chat.completions.create({ messages, ...asked })).choices[0].message;
const second = await client.chat.completions.create({
  messages: [...messages, first, { role: "user", content: "again" }],
  ...asked,
});
console.log(JSON.stringify({ models, text, stream, turns: [first.content, second.choices[0].message.content] }));
