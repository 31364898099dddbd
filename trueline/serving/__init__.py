"""An OpenAI-compatible server over the decode engine: `trueline serve`.

    asyncio (uvicorn)                                         one thread
    http.py     keys, limits, slow and departed clients       scheduler.py   owns the engine: open, step, cancel, score
    protocol.py what may be sent, strictly                    ------------
    prepare.py  tokens, method, law, masks   -- open ------>  DecodeEngine: every open request in one batch
    app.py      endpoints                    <-- events ----
    choices.py  certain text, log-probs, how it ended (detokenise.py, stopping.py)
    answers.py  the two protocols, whole or streamed

A client names methods, rewards and models that the server was started with; nothing that it sends is executed or loaded.
What a request answers depends on the request alone and not on what runs beside it. `host.py` holds what is served and the
limits, `loading.py` makes it from folders, `server.py` runs it and drains it, `page/` is the page for trying a prompt.
"""
