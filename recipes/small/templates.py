"""Sentences made by a grammar: telephone prompts, commands, numbers, dates, names. Text in, nothing installed.

A rule is a list of alternatives; `{name}` in one stands for a rule or for one of the functions in `SPOKEN`. Numbers are
written as they are said, since that is what a synthesiser is given to say.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
SLOT = re.compile(r"\{(\w+)\}")


def number_words(number: int) -> str:
    """A whole number below a thousand million in words: 342 -> "three hundred and forty-two"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
    for size, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= size:
            head, rest = divmod(number, size)
            joint = " and " if rest and rest < 100 and size == 100 else " "
            return f"{number_words(head)} {name}" + (f"{joint}{number_words(rest)}" if rest else "")
    raise AssertionError("every number is below or above a hundred")


def ordinal_words(number: int) -> str:
    """1 to 39 as an ordinal: 23 -> "twenty-third"."""
    if number <= 20:
        return ORDINALS[number - 1]
    tens, ones = divmod(number, 10)
    return f"{TENS[tens]}-{ORDINALS[ones - 1]}" if ones else f"{TENS[tens][:-1]}ieth"


def year_words(year: int) -> str:
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{number_words(century)} hundred" if century % 10 else number_words(year)
    if century == 20 and rest < 10:
        return f"two thousand and {ONES[rest]}"
    return f"{number_words(century)} {'oh ' if rest < 10 else ''}{number_words(rest)}"


def clock_words(rng: random.Random) -> str:
    hour, minute = rng.randrange(1, 13), rng.choice((0, 0, 15, 30, 45, rng.randrange(1, 60)))
    part = rng.choice(("", "", " in the morning", " in the afternoon", " in the evening", " at night"))
    if rng.random() < 0.3:
        other = number_words(hour % 12 + 1)
        return rng.choice(
            (
                f"a quarter past {ONES[hour]}",
                f"half past {ONES[hour]}",
                f"a quarter to {other}",
                f"ten to {other}",
            )
        )
    if minute == 0:
        return f"{ONES[hour]} o'clock{part}"
    return f"{ONES[hour]} {'oh ' if minute < 10 else ''}{number_words(minute)}{part}"


def digits(rng: random.Random, low: int, high: int) -> str:
    """Digits one by one, in groups as people read a number out."""
    words = [
        ONES[rng.randrange(10)] if rng.random() < 0.93 else "oh" for _ in range(rng.randrange(low, high + 1))
    ]
    if len(words) < 6:
        return " ".join(words)
    groups = [words[start : start + rng.choice((3, 3, 4))] for start in (0,)]
    while sum(map(len, groups)) < len(words):
        start = sum(map(len, groups))
        groups.append(words[start : start + rng.choice((2, 3, 4))])
    return ", ".join(" ".join(group) for group in groups)


def money_words(rng: random.Random) -> str:
    pounds = rng.choice((rng.randrange(1, 100), rng.randrange(100, 1000), rng.randrange(1, 50) * 100))
    unit, cent = rng.choice((("dollar", "cent"), ("dollar", "cent"), ("euro", "cent"), ("pound", "penny")))
    text = f"{number_words(pounds)} {unit}{'' if pounds == 1 else 's'}"
    if rng.random() < 0.4 and cent == "cent":
        text += f" and {number_words(rng.randrange(2, 100))} cents"
    return text


def date_words(rng: random.Random) -> str:
    month, day = rng.choice(RULES["month"]), ordinal_words(rng.randrange(1, 32))
    text = rng.choice((f"{month} {day}", f"the {day} of {month}"))
    if rng.random() < 0.3:
        text = f"{rng.choice(RULES['weekday'])}, {text}"
    if rng.random() < 0.3:
        text += f", {year_words(rng.randrange(1850, 2035))}"
    return text


# What a number or a date looks like is worked out, not listed.
SPOKEN: dict[str, Callable[[random.Random], str]] = {
    "digit": lambda rng: ONES[rng.randrange(10)],
    "few": lambda rng: number_words(rng.randrange(2, 13)),
    "count": lambda rng: number_words(rng.choice((rng.randrange(2, 100), rng.randrange(100, 1000)))),
    "large": lambda rng: number_words(
        rng.choice((rng.randrange(1000, 10_000), rng.randrange(2, 900) * 1000, rng.randrange(2, 90) * 10**6))
    ),
    "extension": lambda rng: digits(rng, 3, 4),
    "telephone": lambda rng: digits(rng, 7, 11),
    "code": lambda rng: digits(rng, 4, 8),
    "year": lambda rng: year_words(rng.randrange(1700, 2035)),
    "clock": clock_words,
    "date": date_words,
    "money": money_words,
    "ordinal": lambda rng: ordinal_words(rng.randrange(1, 32)),
    "letters": lambda rng: " ".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randrange(3, 7))),
    "decimal": lambda rng: f"{number_words(rng.randrange(0, 100))} point {digits(rng, 1, 3)}",
}  # fmt: skip

RULES: dict[str, list[str]] = {
    "month": "January February March April May June July August September October November December".split(),
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "first": (
        "James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph "
        "Jessica Thomas Sarah Charles Karen Daniel Lisa Matthew Nancy Anthony Betty Mark Sandra Steven Ashley Paul "
        "Emily Andrew Donna Joshua Michelle Kenneth Carol Kevin Amanda Brian Melissa George Deborah Edward Stephanie "
        "Peter Helen Alice Oliver Emma Harry Grace Lucy Hannah Samuel Walter Rose Frank Martha Arthur Julia Henry Anna"
    ).split(),
    "last": (
        "Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez Wilson Anderson "
        "Taylor Moore Jackson Martin Lee Thompson White Harris Clark Lewis Robinson Walker Young Allen King Wright "
        "Scott Hill Green Adams Nelson Baker Hall Campbell Mitchell Carter Roberts Turner Phillips Parker Evans Edwards "
        "Collins Stewart Morris Murphy Cook Rogers Morgan Cooper Peterson Reed Bailey Bell Kelly Howard Ward Watson"
    ).split(),
    "city": (
        "London,Paris,New York,Chicago,Boston,Los Angeles,San Francisco,Seattle,Denver,Dallas,Atlanta,Miami,"
        "Washington,Philadelphia,Toronto,Vancouver,Montreal,Dublin,Edinburgh,Glasgow,Manchester,Liverpool,Bristol,"
        "Oxford,Cambridge,Berlin,Munich,Vienna,Rome,Madrid,Lisbon,Amsterdam,Brussels,Copenhagen,Stockholm,Oslo,"
        "Helsinki,Moscow,Athens,Cairo,Sydney,Melbourne,Auckland,Tokyo,Singapore,Hong Kong,Mumbai,Cape Town,Nairobi"
    ).split(","),
    "street": (
        "Main Street,Church Road,Park Avenue,Oak Lane,High Street,Station Road,Elm Street,Mill Lane,River Road,"
        "Maple Avenue,Bridge Street,Garden Close,King's Road,Hill Street,Lake Drive,Washington Square"
    ).split(","),
    "room": (
        "kitchen,bedroom,living room,bathroom,hall,garage,office,dining room,basement,garden,nursery,porch,study,"
        "guest room,attic,driveway"
    ).split(","),
    "colour": "red green blue yellow orange purple white pink warm cold".split(),
    "device": (
        "lights,lamp,heating,fan,television,radio,speakers,air conditioning,oven,coffee machine,blinds,curtains,"
        "ceiling light,heater,music,vacuum cleaner,dishwasher,washing machine,alarm,projector,screen,computer"
    ).split(","),
    "department": (
        "sales,customer service,technical support,billing,accounts,reservations,the front desk,human resources,"
        "the warranty department,new orders,returns,the claims department,shipping,the pharmacy,emergency services,"
        "the service desk,membership,general enquiries,the press office,investor relations,purchasing,marketing,"
        "the appointment desk,the parts department,an agent,a representative,the manager on duty,the dispatcher"
    ).split(","),
    "business": (
        "Northern Rail,the City Library,Green Valley Dental,Harbour Insurance,First Community Bank,Sunrise Travel,"
        "the Lakeside Hotel,Riverside Medical Centre,Atlas Couriers,Bluebird Airlines,Oakwood Furniture,Metro Electric,"
        "Summit Communications,the Department of Motor Vehicles,the Grand Theatre,Golden Gate Motors,Pine Street Clinic,"
        "Valley Water,Star Mobile,the Museum of Science"
    ).split(","),
    "key": ["the pound key", "the pound key", "pound", "the hash key", "the star key", "star", "{digit}", "zero"],
    "secret": (
        "password,account number,customer number,pin,access code,conference number,mailbox number,order number,"
        "card number,security code,extension,member number,reference number,date of birth,postal code,telephone number,"
        "conference pin,passcode,booking number,employee number,meeting number,ticket number,social security number"
    ).split(","),
    "purpose": (
        "check your balance,pay a bill,report a fault,leave a message,speak to an operator,hear these options again,"
        "change your address,make an appointment,cancel an order,track a parcel,hear our opening hours,reset your password,"
        "return to the main menu,skip this message,listen to your messages,open a new account,record your name,"
        "confirm your reservation,speak with a nurse,renew a prescription,book a table,update your details,"
        "request a new card,hear the weather,report a lost card,change your greeting,forward the message,end the call,"
        "continue in English,listen to the list of participants,lock the conference,mute your line,delete this message,"
        "save this message,replay the message,reply to this message,hear the date and time,adjust the volume,"
        "change folders,send a fax,find the nearest branch,be called back,repeat this information,go back"
    ).split(","),
    "choice": [
        "for {department}, press {digit}.", "to {purpose}, press {digit}.", "press {digit} to {purpose}.",
        "press {digit} for {department}.", "to {purpose}, press {key}.", "if you would like to {purpose}, press {digit}.",
        "if you wish to {purpose}, please press {digit} now.", "to reach {department}, dial {digit}.",
        "for {department}, say or press {digit}.",
    ],
    "greeting": [
        "thank you for calling {business}.", "welcome to {business}.", "you have reached {business}.",
        "hello, and welcome to {business}.", "good {daytime}, and thank you for calling {business}.",
        "you have reached the voice mail of {first} {last}.", "our office is now closed.",
    ],
    "daytime": ["morning", "afternoon", "evening"],
    "aside": [
        "please listen carefully, as our options have changed.", "if you know your party's extension, you may dial it now.",
        "this call may be recorded for training purposes.", "calls are answered in the order they are received.",
        "please choose from the following options.", "your call is important to us.", "if this is an emergency, please hang up.",
        "our office hours are from {clock} to {clock}.", "we are open {weekday} to {weekday}.",
    ],
    "menu": [
        "{greeting} {choice} {choice}", "{greeting} {aside} {choice} {choice} {choice}", "{choice} {choice}",
        "{choice} {choice} {choice}", "{choice} {choice} {choice} {choice}", "{greeting} {choice} {choice} {choice} {choice}",
        "{choice} {choice} {choice} {choice} {choice}", "{choice}", "{greeting} {aside}", "{aside} {choice} {choice} {choice}",
        "{greeting} {aside} {choice} {choice} {choice} {choice}",
    ],
    "prompt": [
        "please enter your {secret}, followed by {key}.", "please enter the {secret}.", "enter your {secret} now.",
        "please say or enter your {secret}.", "the {secret} you entered is not valid.", "that {secret} was not recognised.",
        "{wrong} please try again.", "please hold while I try to locate the person you are calling.",
        "the person at extension {extension} is not available.", "please leave your message after the tone.",
        "at the tone, please record your {thing}, and then press {key}.", "you have {few} new messages.",
        "you have {count} old messages.", "first message, received {date} at {clock}.", "message {count}.",
        "the number you have dialed, {telephone}, is not in service.", "your call cannot be completed as dialed.",
        "please check the number and dial again.", "the subscriber you are calling is not available at this time.",
        "all of our agents are busy at the moment.", "you are caller number {few} in the queue.",
        "your estimated waiting time is {few} minutes.", "please stay on the line, and your call will be answered shortly.",
        "you are currently the only person in this conference.", "there are {few} other people in the conference.",
        "the conference will begin when the leader arrives.", "please state your name, then press {key}.",
        "{first} {last} has joined the meeting.", "{first} {last} has left the conference.", "you have been muted.",
        "your message has been saved.", "your message has been sent.", "message deleted.", "recording has started.",
        "press {key} when finished.", "goodbye.", "thank you, goodbye.", "one moment, please.", "please wait.", "invalid entry.",
        "transferring you to {department}.", "connecting you to extension {extension}.", "the time is now {clock}.",
        "your new {secret} is {code}.", "the line is busy.", "your balance is {money}.", "you have {count} minutes left.",
        "your payment of {money} was received on {date}.", "call forwarding has been turned off.", "do not disturb is on.",
        "call waiting has been activated.", "is not available.", "please try your call again later.", "to a wrong number.",
        "the {secret} must be at least {few} digits long.", "the two {secret}s do not match.", "caller id is unknown.",
        "your call has been placed on hold.", "no one is available to take your call.", "the mailbox is full.",
        "this number has been changed. the new number is {telephone}.", "we are sorry, {wrong}",
        "you may hang up, or press {key} for more options.", "the call from {telephone} was received at {clock}.",
    ],
    "wrong": [
        "that is not a valid {secret}.", "I did not understand your answer.", "that extension does not exist.",
        "we did not receive your selection.", "your login is incorrect.", "your session has expired.",
    ],
    "thing": ["name", "message", "greeting", "busy greeting", "temporary greeting", "comment", "question"],
    "command": [
        "turn {onoff} the {room} {device}.", "turn the {device} {onoff}.", "switch {onoff} the {device} in the {room}.",
        "set the {device} to {few}.", "make the {room} {warmer}.", "set the temperature in the {room} to {count} degrees.",
        "dim the {room} lights.", "make the {device} {colour}.", "turn the volume {updown}.", "volume {updown}.",
        "play some {music}.", "play the next song.", "pause the music.", "stop.", "skip this track.", "resume.", "cancel.",
        "set a timer for {few} minutes.", "set an alarm for {clock}.", "wake me up at {clock}.", "remind me to {errand}.",
        "remind me to {errand} at {clock}.", "add {food} to the shopping list.", "call {first} {last}.", "call {relative}.",
        "send a message to {first}.", "open the {room} {opening}.", "close the {opening}.", "lock the front door.",
        "what time is it?", "what is the weather like in {city}?", "will it rain {when}?", "navigate to {street}.",
        "take me to the nearest {place}.", "how far is it to {city}?", "what is {count} plus {count}?", "go {direction}.",
        "show me the pictures of {first}.", "start the {device}.", "find a {place} near {street}.", "read my messages.",
        "go back.", "go {direction} {few} meters.", "yes.", "no.", "yes, please.", "no, thank you.", "okay.", "up.", "down.",
        "left.", "right.", "help.", "volume to {count} percent.", "make it {warmer}.", "book a table for {few} at {clock}.",
        "increase the temperature in the {room}.", "decrease the brightness of the {room} lights.", "bring me the {item}.",
        "bring my {item} from the {room}.", "get the {item}.", "change the language to {language}.", "mute.", "{colour} light.",
    ],
    "language": "English German French Spanish Italian Chinese Korean Japanese Russian Portuguese".split(),
    "item": "shoes socks newspaper juice keys glasses book towel umbrella phone jacket slippers".split(),
    "onoff": ["on", "off"], "updown": ["up", "down", "all the way up", "to {few}"],
    "warmer": ["warmer", "colder", "brighter", "darker", "quieter", "louder"],
    "music": "jazz,rock,classical music,old songs,dance music,country music,blues,folk songs,Christmas carols".split(","),
    "errand": (
        "water the plants,call the dentist,buy milk,pick up the children,pay the rent,take out the rubbish,feed the cat,"
        "charge the car,post the letter,take my medicine,book the tickets,wash the car,call my sister back"
    ).split(","),
    "food": "milk bread eggs butter apples cheese rice coffee tea sugar flour onions potatoes tomatoes bananas".split(),
    "relative": ["mum", "dad", "my brother", "my sister", "grandma", "home", "the office", "the doctor", "a taxi"],
    "opening": ["door", "window", "blinds", "gate", "curtains", "shutters"],
    "when": ["today", "tomorrow", "this afternoon", "on {weekday}", "next week", "tonight"],
    "place": "petrol station,restaurant,hospital,pharmacy,hotel,bank,supermarket,car park,post office,bakery".split(","),
    "direction": ["left", "right", "forward", "back", "straight on", "home", "north", "south", "east", "west"],
    "fact": [
        "the train to {city} leaves at {clock} from platform {few}.", "she was born on {date}.", "he was born in {year}.",
        "the meeting is on {date} at {clock}.", "my phone number is {telephone}.", "it costs {money}.",
        "the population of {city} is about {large}.", "that is spelled {letters}.", "the code is {letters} {code}.",
        "{first} {last} lives at {count} {street}, {city}.", "flight {letters} {extension} to {city} is delayed by {few} hours.",
        "the {ordinal} of {month} is a {weekday}.", "we sold {large} tickets last year.", "the score was {few} to {few}.",
        "{first} is {count} years old.", "the distance is {decimal} miles.", "chapter {count}.", "page {count}.",
        "prices rose by {decimal} percent in {year}.", "please call {first} {last} on {telephone}.", "{telephone}.",
        "{code}.", "{letters}.", "{count}.", "{large}.", "{date}.", "{clock}.", "{money}.", "{first} {last}.", "{city}.",
        "the file is {count} megabytes.", "take {few} tablets {few} times a day.", "{decimal}.", "{weekday} at {clock}.",
        "dear {first}, I will arrive in {city} on {weekday}.", "in {year}, {first} {last} moved from {city} to {city}.",
        "the bridge is {count} feet long and was built in {year}.", "room {extension} is on the {ordinal} floor.",
        "{first}, {first} and {first} went to {city} for {few} days.", "my name is {first} {last}, {letters}.",
        "{first} {last}, {first} {last}, and {first} {last}.", "it was {clock} when {first} came home.",
        "they paid {money} for {few} nights in {city}.", "between {year} and {year}, {first} wrote {few} books.",
    ],
    # The names under which `speak` is asked for a sentence.
    "start_prompts": ["{menu}", "{prompt}", "{prompt}", "{prompt} {prompt}", "{prompt} {choice}", "{prompt} {prompt} {prompt}"],
    "start_commands": ["{command}"],
    "start_facts": ["{fact}", "{fact}", "{fact} {fact}"],
}  # fmt: skip


def make_sentence(kind: str, rng: random.Random) -> str:
    """One utterance of `prompts`, `commands` or `facts`, with capital letters and full stops."""
    text = _expand(f"{{start_{kind}}}", rng)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def _expand(text: str, rng: random.Random) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return SPOKEN[name](rng) if name in SPOKEN else _expand(rng.choice(RULES[name]), rng)

    return SLOT.sub(fill, text)
