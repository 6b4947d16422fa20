"""The audit: which connections and name look-ups a program makes with no deadline in force (L5).

``recorder`` is the audit hook, in every Python process of the program; ``inject`` is what puts it
there; ``report`` reads what the processes wrote; ``command`` is ``timedblock audit``.
"""
