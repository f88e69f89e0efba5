"""What Python's own client of OpenAI makes of a server. Reads {url, key, busy, picture, sign} from the standard input (`busy`: another server,
which has no place left); writes a JSON object with what came of each case, for python.test.ts to compare."""

import asyncio
import base64
import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel, Field

given = json.load(sys.stdin)
client = openai.OpenAI(base_url=given["url"] + "/v1", api_key=given["key"], max_retries=0)
results = {}


def case(function):
    results[function.__name__] = function()
    return function


def user(content):
    return [{"role": "user", "content": content}]


WILD = {"temperature": 1.5, "top_p": 0.99, "seed": 7, "max_tokens": 40}
STORY = {"model": "demo", "messages": user("Tell me a story.")}
TAUGHT = {"temperature": 0, "extra_body": {"adapter": "tools"}}


class Shape(BaseModel):
    shape: Literal["circle", "square"]
    n: int = Field(ge=1, le=9)


class add(BaseModel):
    """Adds two numbers"""

    a: int
    b: int


@case
def chat():
    answer = client.chat.completions.create(**STORY, **WILD)
    [choice] = answer.choices
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "tokens": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
    }


@case
def stream():
    chunks = list(client.chat.completions.create(**STORY, **WILD, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    usage = chunks[-1].usage
    return {
        "text": text,
        "finish": chunks[-2].choices[0].finish_reason,
        "tokens": [usage.prompt_tokens, usage.completion_tokens],
    }


@case
def asynchronous():
    async def several():
        async with openai.AsyncOpenAI(base_url=given["url"] + "/v1", api_key=given["key"]) as own:
            answers = [own.chat.completions.create(**STORY, **{**WILD, "seed": seed}) for seed in (7, 8, 9)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*answers)]

    return asyncio.run(several())


@case
def leaving():
    with client.chat.completions.create(**STORY, stream=True) as chunks:
        return next(iter(chunks)).choices[0].delta.role


@case
def picture():
    def ask(name, question, **options):
        with open(given[name], "rb") as file:
            url = "data:image/png;base64," + base64.b64encode(file.read()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        answer = client.chat.completions.create(model="demo", messages=user(content), temperature=0, **options)
        return answer.choices[0].message.content

    return [
        ask("picture", "Describe the picture."),
        ask("sign", "What does it say?", extra_body={"panAndScan": True}),
    ]


@case
def tools():
    asked = {"model": "demo", "tools": [openai.pydantic_function_tool(add)], **TAUGHT}
    messages = user("What is 417 plus 311?")
    message = client.chat.completions.parse(messages=messages, **asked).choices[0].message
    [call] = message.tool_calls
    arguments = call.function.parsed_arguments
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": str(arguments.a + arguments.b)}]
    answer = client.chat.completions.create(messages=messages, **asked)
    with client.chat.completions.stream(messages=messages[:1], **asked) as events:
        streamed = events.get_final_completion().choices[0]
    return {
        "arguments": arguments.model_dump(),
        "answer": answer.choices[0].message.content,
        "streamed": [streamed.finish_reason, json.loads(streamed.message.tool_calls[0].function.arguments)],
    }


@case
def schema():
    asked = {"model": "demo", "messages": user("Which shape?"), "response_format": Shape, "seed": 7, "max_tokens": 100}
    parsed = client.chat.completions.parse(**asked).choices[0].message.parsed
    with client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion().choices[0].message.parsed
    return {"parsed": parsed.model_dump(), "streamed": streamed.model_dump(), "schema": Shape.model_json_schema()}


@case
def logprobs():
    answer = client.chat.completions.create(**STORY, **WILD, logprobs=True, top_logprobs=3)
    return [[each.logprob, [top.logprob for top in each.top_logprobs]] for each in answer.choices[0].logprobs.content]


@case
def completions():
    asked = {"model": "demo", "prompt": "The capital of France is", "temperature": 0}
    [choice] = client.completions.create(**asked, max_tokens=1, echo=True, logprobs=1).choices
    return {"text": choice.text, "logprobs": choice.logprobs.token_logprobs}


@case
def responses():
    asked = {"model": "demo", "input": "Tell me a story.", "temperature": 1.5, "top_p": 0.99, "max_output_tokens": 40}
    whole = client.responses.create(**asked, extra_body={"seed": 7})
    events = client.responses.create(**asked, extra_body={"seed": 7}, stream=True)
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    parsed = client.responses.parse(model="demo", input="Which shape?", text_format=Shape, extra_body={"seed": 7})
    return {"text": whole.output_text, "streamed": "".join(pieces), "parsed": parsed.output_parsed.model_dump()}


@case
def embeddings():
    asked = {"model": "embedding", "input": ["one text", "and another"]}
    return {
        "base64": [each.embedding for each in client.embeddings.create(**asked).data],
        "float": [each.embedding for each in client.embeddings.create(**asked, encoding_format="float").data],
        "short": [each.embedding for each in client.embeddings.create(**asked, dimensions=8).data],
    }


@case
def models():
    return [[model.id for model in client.models.list()], client.models.retrieve("demo").id]


@case
def errors():
    def failure(asks, *arguments, **options):
        try:
            asks(*arguments, **options)
        except openai.APIError as error:
            status = getattr(error, "status_code", None)
            return [type(error).__name__, status, error.code, error.param, error.message]
        return None

    def late():
        asked = {"model": "demo", "messages": user("word " * 40000), "stream": True}
        return list(client.chat.completions.create(**asked))

    ask = client.chat.completions.create
    other = {"base_url": given["url"] + "/v1", "max_retries": 0}
    return {
        "parameter": failure(ask, **STORY, temperature=3),
        "unknown": failure(ask, **STORY, extra_body={"mirostat": 2}),
        "model": failure(ask, model="nobody", messages=user("Hello")),
        "key": failure(openai.OpenAI(api_key="wrong", **other).models.list),
        "length": failure(late),
        "busy": failure(
            openai.OpenAI(base_url=given["busy"] + "/v1", api_key="none", max_retries=0).chat.completions.create, **STORY
        ),
        "nowhere": failure(
            openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=0).models.list
        ),
    }


json.dump(results, sys.stdout)
