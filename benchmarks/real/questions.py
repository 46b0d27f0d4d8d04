"""Twenty questions that a small model which talks answers sensibly, the same in every study."""

QUESTIONS = (
    "What is the capital of France?",
    "How many legs does a spider have?",
    "Write one sentence about the sea.",
    "What color do you get when you mix blue and yellow?",
    "Name three animals that live on a farm.",
    "What is 7 plus 5?",
    "Why do leaves fall in autumn?",
    "Who wrote Romeo and Juliet?",
    "Give me a tip for falling asleep.",
    "What do bees make?",
    "Rewrite this politely: Give me the book.",
    "What is the opposite of hot?",
    "Name the planet closest to the sun.",
    "What can I cook with eggs and potatoes?",
    "Complete the sentence: The early bird catches the",
    "How many days are in a week?",
    "Explain in one sentence what a computer is.",
    "What language do people speak in Brazil?",
    "Write a short greeting for a birthday card.",
    "Is the following review positive or negative? 'I loved every minute of it.'",
)
