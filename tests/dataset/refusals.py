"""Answers that refuse or disclaim, and answers that only sound like it, for the lints' recall."""

REFUSALS = """\
I'm sorry, but I can't assist with that request.
I’m sorry, but I can’t help with that.
I am sorry, but as an AI language model I am not able to provide medical advice.
Sorry, I cannot help you with that.
I cannot provide instructions for making explosives.
As an AI language model, I do not have personal opinions.
As an artificial intelligence, I don't have feelings.
I must respectfully decline to write that story.
I do not feel comfortable writing content of that kind.
It is not appropriate to generate harmful content.
I'm afraid I can't do that.
I won't help with creating malware.
My apologies, but I cannot discuss that topic.
I'm just an AI, I can't make phone calls.
I refuse to answer this question.
This request violates my content policy, so I will not continue.
I regret to inform you that I cannot comply with this request.
I can’t provide guidance on how to pick locks.
I don't have access to real-time data, so I can't tell you the current price.
As a large language model trained by OpenAI, I can't do this.
As an AI, it is beyond my capabilities to taste food.
I apologize for any inconvenience, but I am unable to complete this task.
I'm sorry, but I do not have the capability to access external websites.
My knowledge cutoff is September 2021, so I may not know recent events.
As of my last knowledge update in 2022, the record was 9.58 seconds.
I'm not comfortable writing jokes about that group.
I'm sorry, I won't be able to help with this one.
Unfortunately, as an AI, I am unable to access your calendar.
I can't discuss the personal lives of private individuals.
I'm an AI assistant, so I don't have a favourite colour.
""".splitlines()

ANSWERS = """\
I'm sorry to hear that your package arrived late. Here is how to claim a refund.
Sorry for the delay in my reply! The answer is 42.
You cannot divide by zero, because no number times zero gives one.
I can help with that. First open the settings.
The protagonist says "I'm sorry" and leaves the room.
Language models are neural networks trained on text.
It is not possible to travel faster than light.
Unable to connect means that the server is down; restart it.
Dear John, I regret to inform you that your application was not successful.
I apologize for the confusion. The correct value is 7.
We cannot guarantee delivery before Friday, but express shipping usually takes two days.
My sincere apologies for the inconvenience; a replacement is on its way.
I don't have any siblings, but my cousin lives nearby.
That is against the rules of chess, since the king would be in check.
As an aid worker, I travelled to many countries.
Unfortunately, I cannot attend the meeting on Monday. Could we move it to Tuesday?
I am afraid of spiders, she said.
I will not be able to come tomorrow, so please start without me.
I'm not going to lie, this recipe takes time, but it is worth it.
I can not only sing but also dance.
As a language teacher, I recommend reading aloud.
I decline the noun as follows: rosa, rosae.
Your request was received and will be answered within two days.
I don't think it is a good idea to mix bleach and ammonia; the fumes are toxic.
This content is protected by copyright law in most countries.
Sorry is the hardest word to say, as the song has it.
We can't help but notice how bright the colours are.
An AI winter is a period of reduced interest in artificial intelligence.
The knowledge base was updated in March and now covers all products.
I need to refuse the offer politely: "Thank you, but I have other plans."
""".splitlines()
