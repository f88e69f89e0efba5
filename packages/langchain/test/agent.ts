// An agent of one tool, as LangChain's users write it; also for the tests of other models of LangChain.
import { HumanMessage, type AIMessageChunk, type BaseMessage, type ToolMessage } from '@langchain/core/messages';
import type { Runnable } from '@langchain/core/runnables';
import type { StructuredToolInterface } from '@langchain/core/tools';

/** The conversation from a question to the first answer without a call. */
export async function runAgent(
  agent: Pick<Runnable<BaseMessage[], AIMessageChunk>, 'invoke'>,
  tool: Pick<StructuredToolInterface, 'invoke'>,
  question: string,
): Promise<BaseMessage[]> {
  const messages: BaseMessage[] = [new HumanMessage(question)];
  for (;;) {
    const said = await agent.invoke(messages);
    messages.push(said);
    if (!said.tool_calls?.length) return messages;
    for (const call of said.tool_calls) {
      const result: unknown = await tool.invoke({ ...call, type: 'tool_call' });
      messages.push(result as ToolMessage);
    }
  }
}
