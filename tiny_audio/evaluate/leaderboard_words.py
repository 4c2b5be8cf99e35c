"""What the Open ASR Leaderboard's English normaliser treats as the same word, beyond Whisper's.

The words are facts of that project (github.com/huggingface/open_asr_leaderboard, normalizer/, Apache-2.0), as of
commit d1e99b2 of 21 August 2026. The board changes its rules now and then, so a rate is comparable with those of
that time.
"""

from __future__ import annotations

# Sounds that are taken out, Whisper's six among them (a pattern).
FILLERS = "ah|aha|ahh|ahm|eh|ehehe|em|hm|hmm|huh|hum|mhm|mhum|mm|mmm|uh|uhm|uhuh|um|umm"

# Whisper's package writes these out, the board leaves them alone.
KEPT_CONTRACTIONS = ("kinda", "sorta", "dunno", "cause")

# "'s" becomes " is" after these words only: elsewhere it may be a genitive, which becomes " s" (a pattern).
WORDS_BEFORE_IS = "it|he|she|what|that|who|here|there|how|when|where|why|this"

# Two words that count as one, before numbers are recognised.
COMPOUNDS = {
    "et cetera": "etc",
    "al right": "alright",
    "all right": "alright",
    "how ever": "however",
    "wi fi": "wifi",
    "hi fi": "hifi",
    "lo fi": "lofi",
    "sci fi": "scifi",
    "e mail": "email",
    "e book": "ebook",
    "e commerce": "ecommerce",
    "x ray": "xray",
    "t shirt": "tshirt",
    "a m": "am",
    "p m": "pm",
    "o k": "okay",
}

# Where the board's list of spellings differs from Whisper's; a word that maps to itself is left alone.
SPELLINGS = {
    "ok": "okay",
    "kay": "okay",
    "etcetera": "etc",
    "archaeology": "archeology",
    "archaeological": "archeological",
    "archeological": "archeological",
    "cancellation": "cancelation",
    "cancellations": "cancelations",
    "cancelation": "cancelation",
    "cancelations": "cancelations",
    "flyer": "flier",
    "mm": "hmm",
    "pummelled": "pummeled",
    "pummelling": "pummeling",
    "snowploughs": "snowplows",
    "travelogue": "travelog",
    "travelogues": "travelogs",
    "travelog": "travelog",
    "travelogs": "travelogs",
}

# Each name with the spellings that count as it.
_NAMES = """
aaron: aron; alfonso: alphonso; alison: allison alyson; allen: alan allan; anne: ann; anthony: antony;
arthur: artur; brett: bret; brian: bryan; bridget: bridgette; caitlin: katelyn kaitlyn kaitlin; carl:
karl; carol: carrol carole carroll; catherine: katherine kathryn catharine; cathy: kathy; charlie: charly
charley; chris: kris; christina: kristina; christopher: kristopher cristopher; colin: collin; deborah:
devorah; dennis: denis; dominic: dominick; douglas: douglass; dylan: dillon; eric: erik erick; fatima:
fatimah; frederick: frederik fredrick; gail: gayle; gary: garry; greg: gregg; henry: henri; ivonne:
yvonne; jackie: jacky; jamie: jaime; jason: jayson; jeff: geoff; jeffrey: geoffrey jeffery; joanne: joann
joane; john: jon; jonathan: johnathan jonathon; joseph: josef; karen: caren caryn karin; kelly: kellye
kelli kelley; kevin: kevan; kristin: kristen; laurie: lori; lawrence: laurence; lee: leigh; leslie:
lesley; lily: lilly; linda: lynda; lindsay: linsey lindsey; louis: lewis; lucas: lukas; lynn: lynne; mark:
marc; martin: martyn; matthew: mathew; mcarthur: macarthur; mccarthy: macarthy maccarthy; mccartney:
macartney; mcdonald: macdonald; mcgowan: macgowan; mcintosh: macintosh; mcintyre: macintyre; mckay:
mackay; mckenzie: mackenzie; mclean: maclean; mcleod: macleod; mcmillan: macmillan; mcnamara: macnamara;
megan: meghan; michael: micheal; michelle: michele; miriam: myriam; mohammed: mohamad mohamed mohammad
muhammad muhamad muhammed mouhamed mouhamad mahomet; molly: mollie; natalie: nathalie; neil: neal;
nicholas: nicolas; nicole: nikole; patrick: patrik; peter: pieter; philip: phillip; rachel: rachael;
rajiv: rajeev; rebecca: rebekah; rob: robb; robin: robyn; roger: rodger; ronda: rhonda; russell: russel;
sally: sallie; sarah: sara; sean: shaun shawn; shane: shayne; sherry: sheri cheri sherrie; simon: symon;
stacy: stacey stacie; steven: stephen; stuart: stewart; susanne: suzanne; teresa: theresa; terry: terri;
thomas: tomas; toby: tobey; tony: toni; tracy: tracey tracie; veronica: veronika; victor: viktor;
victoria: viktoria; walter: walther; yousef: yusuf yusef; zach: zak; zachary: zackary zachery
"""

NAMES = {
    variant: name.strip()
    for name, variants in (entry.split(":") for entry in _NAMES.split(";"))
    for variant in variants.split()
}
