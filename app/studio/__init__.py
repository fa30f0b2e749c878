"""`splatsmith ui`: the page in the browser, with the jobs of `app.queue` behind it.

`page.serve` runs the server, `page.build_page` lays the tabs out, one file a tab; `files` serves what jobs made to the visitor
whose they are, `guard` stands before all of it. What needs torch runs in the queue's workers, or in that of `errands`.
"""
